"""BYOL: ResNet-50 on ImageNet without labels, 1,000 epochs.

    python -m jaxvision.train --config configs/byol_resnet50.py --workdir runs/byol_resnet50

Then configs/linear_imagenet.py measures it.
Expected: linear top-1 74.3 % (the paper; 74.0 to 74.5 by the authors' README). Not run by us. The authors' presets for
shorter runs, with lr for 256 images, decay and momentum: 300 epochs 0.3, 1e-6, 0.99; 100 epochs 0.45, 1e-6, 0.99.
Hardware: theirs 512 TPU v3, about 8 hours.
Source: Grill et al. 2020, https://arxiv.org/abs/2006.07733;
https://github.com/google-deepmind/deepmind-research/tree/master/byol, whose blocks begin as the identity, too.
Different here: pixels are normalised by ImageNet's mean and std.
"""

import jaxvision.config

CROP = (
    ("random_resized_crop", dict(filter="bicubic")),
    ("flip", {}),
    ("color_jitter", dict(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, p=0.8)),
    ("grayscale", dict(p=0.2)),
)
ONE = (*CROP, ("blur", dict(p=1.0, sigma=(0.1, 2.0))))
TWO = (*CROP, ("blur", dict(p=0.1, sigma=(0.1, 2.0))), ("solarize", dict(p=0.2)))

config = jaxvision.config.default()
config.data.update(
    train="tfds:imagenet2012/train",
    size=224,
    resize=256,
    filter="bicubic",
    transforms=(("multi_view", dict(views=(ONE, TWO))),),
    threads=16,
    prefetch=8,
)
config.batch_size = 4096
config.epochs = 1000.0
config.model = dict(name="resnet50", zero_init=True)
config.task = dict(name="byol", hidden=4096, width=256, momentum=0.996)
config.optim.update(
    name="lars",
    lr=3.2,  # 0.2 for 256 images
    weight_decay=1.5e-6,
    schedule="cosine",
    warmup_epochs=10.0,
)
config.evals = dict(
    knn=dict(metric="knn", data="tfds:imagenet2012/validation", bank="tfds:imagenet2012/train", every_epochs=50.0)
)
