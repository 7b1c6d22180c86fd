"""ViT-S/16 on ImageNet, 90 epochs: the plain recipe of big_vision.

    python -m jaxvision.train --config configs/vit_s16.py --workdir runs/vit_s16

Expected: 76.5 % top-1 (the authors' config), 76.7 with a linear head as here; 80.0 with --config.epochs=300.
A port to PyTorch had 76.9 to 77.3, by whose crops and RandAugment it took
(https://github.com/EIFY/mup-vit). Not run by us.
Hardware: theirs 6 to 7 hours on a TPU v3-8.
Source: Beyer, Zhai and Kolesnikov 2022, https://arxiv.org/abs/2205.01580; hyper-parameters from
https://github.com/google-research/big_vision/blob/main/big_vision/configs/vit_s16_i1k.py. Different here: all of the
training images (theirs: 99 %), torchvision's 14 operations for RandAugment (theirs: 16, with solarize_add, invert and
cutout), Adam's first moment in float32.
"""

import jaxvision.config

config = jaxvision.config.default()
config.data.update(
    train="tfds:imagenet2012/train",
    size=224,
    resize=256,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    transforms=(
        ("random_resized_crop", dict(scale=(0.05, 1.0))),
        ("flip", {}),
        # their magnitude counts to 10, so 10 is the strongest; torchvision's counts to 30
        ("rand_augment", dict(ops=2, magnitude=10, bins=11, fill=128)),
    ),
    threads=16,
    prefetch=8,
)
config.batch_size = 1024
config.epochs = 90.0
config.model = dict(name="vit_small_patch16_224", positions="sincos", pooling="mean")
config.task = dict(name="classification")
config.wrap = (("mixup", dict(alpha=0.2)),)
config.optim.update(
    name="adamw",
    lr=1e-3,
    # Theirs is 1e-4 times the schedule alone. Here decay is times lr, too: 1e-4 / 1e-3.
    weight_decay=0.1,
    clip=1.0,
    schedule="cosine",
    warmup_steps=10_000,
)
config.evals = dict(val=dict(metric="topk", data="tfds:imagenet2012/validation", every_epochs=5.0))
