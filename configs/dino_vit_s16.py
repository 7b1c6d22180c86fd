"""DINO: ViT-S/16 on ImageNet without labels, 100 epochs, with multi-crop.

    python -m jaxvision.train --config configs/dino_vit_s16.py --workdir runs/dino_vit_s16

Expected: 69.3 % k-NN, linear 73.8 to 74.0 (the authors' README, "vanilla"; their linear layer sees the class tokens of
the last four blocks). Not run by us. Their 300 epochs with teacher_temperature 0.07 have 73.3 and 76.0, their best
weights 74.5 and 77.0.
Hardware: theirs 8 GPUs, 1.75 days.
Source: Caron et al. 2021, https://arxiv.org/abs/2104.14294; defaults of
https://github.com/facebookresearch/dino/blob/main/main_dino.py. Different here: the gradient is clipped by its global
norm, theirs leaf by leaf.
"""

import jaxvision.config

COLOUR = (
    ("flip", {}),
    ("color_jitter", dict(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, p=0.8)),
    ("grayscale", dict(p=0.2)),
)
LARGE = ("random_resized_crop", dict(scale=(0.4, 1.0), filter="bicubic"))
SMALL = ("random_resized_crop", dict(scale=(0.05, 0.4), filter="bicubic"))
ONE = (LARGE, *COLOUR, ("blur", dict(p=1.0)))
TWO = (LARGE, *COLOUR, ("blur", dict(p=0.1)), ("solarize", dict(p=0.2)))
LOCAL = (SMALL, *COLOUR, ("blur", dict(p=0.5)))

config = jaxvision.config.default()
config.data.update(
    train="tfds:imagenet2012/train",
    size=224,
    resize=256,
    filter="bicubic",
    transforms=(("multi_view", dict(views=(ONE, TWO), local=LOCAL, local_count=8, local_size=96)),),
    threads=16,
    prefetch=8,
)
config.batch_size = 512
config.epochs = 100.0
config.model = dict(name="vit_small_patch16_224", drop_path=0.1)
config.task = dict(name="dino", outputs=65536, momentum=0.996, teacher_temperature=0.04)
config.optim.update(
    name="adamw",
    lr=1e-3,  # 5e-4 for 256 images
    weight_decay=0.04,
    weight_decay_final=0.4,
    clip=3.0,
    schedule="cosine",
    warmup_epochs=10.0,
    final=1e-3,  # 1e-6
    unfreeze_epochs=(("projector/last", 1.0),),  # the head's last layer stands still for the first epoch
)
config.evals = dict(
    knn=dict(metric="knn", data="tfds:imagenet2012/validation", bank="tfds:imagenet2012/train", every_epochs=10.0)
)
