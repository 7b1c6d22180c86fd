"""ResNet-50 on ImageNet, 300 epochs, as "ResNet strikes back" trains it (procedure A2).

    python -m jaxvision.train --config configs/resnet50_a2.py --workdir runs/resnet50_a2

Expected: 79.8 % top-1 at 224 px (the paper; 79.83 at 224 and 80.77 at 288 px for timm's resnet50.a2_in1k in timm's
results/results-imagenet.csv). Not run by us. The 90 epochs of configs/resnet50.py give 76 to 77.
Hardware: theirs 4 x V100 with 32 GB, 4.6 days for the 600 epochs of A1. The global batch of 2048 is part of the recipe:
fewer chips take config.accumulate.
Source: Wightman, Touvron and Jégou 2021, https://arxiv.org/abs/2110.00476; code
https://github.com/huggingface/pytorch-image-models.
"""

import jaxvision.config

config = jaxvision.config.default()
config.data.update(
    train="tfds:imagenet2012/train",
    size=224,
    resize=235,  # a crop of 0.95
    filter="bicubic",
    transforms=(
        ("random_resized_crop", dict(filter="bicubic")),
        ("flip", {}),
        ("rand_augment_timm", dict(magnitude=7, std=0.5)),
    ),
    repeats=3,  # an epoch is as long as ever, and has a third of the images three times
    threads=16,
    prefetch=8,
)
config.batch_size = 2048
config.epochs = 300.0
config.model = dict(name="resnet50", zero_init=True, drop_path=0.05)
config.task = dict(name="classification", loss="sigmoid", target_threshold=0.2)
config.wrap = (("mixup", dict(alpha=0.1, cutmix_alpha=1.0)),)
config.optim.update(
    name="lamb",
    lr=5e-3,
    weight_decay=0.02,
    schedule="cosine",
    warmup_epochs=5.0,
    clip=1.0,  # timm's LAMB does so unasked
)
config.evals = dict(val=dict(metric="topk", data="tfds:imagenet2012/validation", every_epochs=10.0))
