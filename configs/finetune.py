"""Your own photos: a ResNet-50 fine-tuned on a folder with one folder a class.

    python -m jaxvision.train --config configs/finetune.py --config.data.train=folder:/my/photos \
        --config.init=hf:timm/resnet50.a1_in1k

Without --config.init it begins from nothing, which needs many more photos. The classes are the folders' names; a tenth
of the photos is held out and measured on, the same tenth in every run, unless --config.evals.val.data names others.
Expected: the accuracy of each class in summary.json, and their mean, `balanced_accuracy`, which chooses the best
checkpoint. It depends on the photos; "ResNet strikes back" reports, for these weights, 97.9 % on Flowers-102 and 98.3 %
on CIFAR-10. Not run by us on anything that large.
Hardware: one accelerator with 8 GB, or patience: 30 epochs of 1,000 photos are minutes on a GPU and hours on two cores.
Source: recipe ours, after Kornblith et al. 2018, https://arxiv.org/abs/1805.08974; weights of Wightman et al. 2021,
https://arxiv.org/abs/2110.00476.
"""

import jaxvision.config

config = jaxvision.config.default()
config.init = ""  # other weights may want other pixels: the error says which
config.data.update(
    train="folder:photos",
    size=224,
    resize=256,
    filter="bicubic",
    transforms=(("random_resized_crop", dict(scale=(0.25, 1.0), filter="bicubic")), ("flip", {})),
)
config.batch_size = 32
config.epochs = 30.0
config.model = dict(name="resnet50")
config.task = dict(name="classification", label_smoothing=0.1)
config.optim.update(
    name="sgd", lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-4, schedule="cosine", warmup_share=0.05
)
config.evals = dict(
    val=dict(metric="per_class", data="", every_epochs=1.0)
)  # no data: a tenth of data.train is held out
config.log.every_steps = 10
