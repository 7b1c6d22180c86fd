"""SimCLR: ResNet-50 on ImageNet without labels, 100 epochs.

    python -m jaxvision.train --config configs/simclr_resnet50.py --workdir runs/simclr_resnet50

Then configs/linear_imagenet.py measures it.
Expected: linear top-1 64.5 % (the authors' README for 100 epochs; VISSL's model zoo: 64.4 for 100, 66.6 for 200, 69.7
for 800). Their weights of 1,000 epochs have 69.1: --config.epochs=1000. Not run by us.
Hardware: theirs 32 TPU v3, about 6 hours. The negatives are those of the batch, so config.accumulate changes the loss.
Source: Chen et al. 2020, https://arxiv.org/abs/2002.05709; https://github.com/google-research/simclr. Different here:
pixels are normalised by ImageNet's mean and std.
"""

import jaxvision.config

VIEW = (
    ("random_resized_crop", dict(filter="bicubic")),
    ("flip", {}),
    ("color_jitter", dict(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, p=0.8)),
    ("grayscale", dict(p=0.2)),
    ("blur", dict(p=0.5, sigma=(0.1, 2.0))),
)

config = jaxvision.config.default()
config.data.update(
    train="tfds:imagenet2012/train",
    size=224,
    resize=256,
    filter="bicubic",
    transforms=(("multi_view", dict(views=(VIEW, VIEW))),),
    threads=16,
    prefetch=8,
)
config.batch_size = 4096
config.epochs = 100.0
config.model = dict(name="resnet50", zero_init=True)
config.task = dict(name="simclr", temperature=0.1, widths=(2048, 128))
config.optim.update(
    name="lars",
    lr=4.8,  # 0.3 for 256 images
    weight_decay=1e-6,
    schedule="cosine",
    warmup_epochs=10.0,
)
config.evals = dict(
    knn=dict(metric="knn", data="tfds:imagenet2012/validation", bank="tfds:imagenet2012/train", every_epochs=10.0)
)
