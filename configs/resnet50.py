"""ResNet-50 v1.5 on ImageNet, 90 epochs, the plain recipe that every other is measured by.

    python -m jaxvision.train --config configs/resnet50.py --workdir runs/resnet50

Expected: 76.x % top-1 on the 50,000 validation images; not run by us yet (it needs accelerators for hours).
Others report, for this recipe: 76.13 (torchvision V1 weights, batch 256), 76.37 to 76.54 (Flax's example, 100
epochs, batch 1024), 77.12 (NVIDIA, 90 epochs with label smoothing and cosine, 8 x A100, about 3 hours).
Hardware: 16 GB of accelerator memory hold 128 images a chip in bfloat16; eight chips hold the batch below.

Data: tfds:imagenet2012, prepared once; without it the command says how. To try the config without any data:

    python -m jaxvision.train --config configs/resnet50.py '--config.data.train=fake:2048x224?classes=1000' \
        '--config.evals.val.data=fake:256x224?classes=1000' --config.epochs=0 --config.steps=20 --config.batch_size=32

Source: Goyal et al. 2017, https://arxiv.org/abs/1706.02677 (lr 0.1 for 256 images, linear in the batch, 5 epochs of
warm-up, last scale of a block zero); cosine and label smoothing from He et al. 2018, https://arxiv.org/abs/1812.01187.
"""

import jaxvision.config

config = jaxvision.config.default()
config.data.update(
    train="tfds:imagenet2012/train",
    size=224,
    resize=256,
    transforms=(("random_resized_crop", {}), ("flip", {})),
    threads=16,
    prefetch=8,
)
config.batch_size = 1024
config.epochs = 90.0
config.model = dict(name="resnet50", zero_init=True)
config.task = dict(name="classification", label_smoothing=0.1)
config.optim.update(
    name="sgd", lr=0.4, momentum=0.9, nesterov=True, weight_decay=1e-4, schedule="cosine", warmup_epochs=5.0
)
config.evals = dict(val=dict(metric="topk", data="tfds:imagenet2012/validation", every_epochs=5.0))
