"""ResNet-50 from ImageNet to CIFAR-10, 20 epochs at 224 px.

    curl -O https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz
    python -m jaxvision.train --config configs/cifar10_finetune.py --workdir runs/cifar10_finetune \
        --config.init=hf:timm/resnet50.a1_in1k

or --config.init=timm:resnet50.a1_in1k=/path/model.safetensors for a file that is there.
Expected: to beat, 92.4 % (a ResNet-50 of 100 epochs). Others report 98.3 for these weights ("ResNet strikes back", A1),
97.2 to 97.4 for BiT-M-R50x1 from ImageNet-21k in three frameworks (https://github.com/google-research/big_transfer).
Not run by us: what this recipe reaches is not known.
Hardware: 20 epochs are a million images, less than one epoch of ImageNet; 16 GB hold the batch in bfloat16.
Source: recipe ours, after Kornblith et al. 2018, https://arxiv.org/abs/1805.08974 (fine-tuning at 224 px by SGD with
Nesterov's momentum); weights of Wightman et al. 2021, https://arxiv.org/abs/2110.00476.
"""

import jaxvision.config

config = jaxvision.config.default()
config.init = ""  # on the command line: without it this trains from scratch
config.data.update(
    train="cifar:cifar-10-binary.tar.gz/train",
    size=224,
    resize=224,  # the object fills the image: nothing is cut off
    filter="bicubic",
    transforms=(("random_resized_crop", dict(scale=(0.5, 1.0), filter="bicubic")), ("flip", {})),
    threads=16,
    prefetch=8,
)
config.batch_size = 256
config.epochs = 20.0
config.model = dict(name="resnet50")
config.task = dict(name="classification", label_smoothing=0.1)
config.wrap = (("mixup", dict(alpha=0.2)), ("ema", dict(decay=0.999)))
config.optim.update(
    name="sgd", lr=0.02, momentum=0.9, nesterov=True, weight_decay=1e-4, schedule="cosine", warmup_share=0.05
)
config.evals = dict(test=dict(metric="topk", data="cifar:cifar-10-binary.tar.gz/test", every_epochs=1.0))
