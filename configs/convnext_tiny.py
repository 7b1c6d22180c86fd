"""ConvNeXt-T on ImageNet, 300 epochs.

    python -m jaxvision.train --config configs/convnext_tiny.py --workdir runs/convnext_tiny

Expected: 82.1 % top-1 (the authors' README; timm measures 82.07 of their weights at 224 px and 82.69 at 288;
torchvision's own training reached 82.52). Not run by us.
Hardware: theirs 4 nodes of 8 GPUs, 128 images on each; 8 GPUs take --config.accumulate=4.
Source: Liu et al. 2022, https://arxiv.org/abs/2201.03545; commands and defaults of
https://github.com/facebookresearch/ConvNeXt/blob/main/TRAINING.md and main.py.
"""

import jaxvision.config

config = jaxvision.config.default()
config.data.update(
    train="tfds:imagenet2012/train",
    size=224,
    resize=256,
    filter="bicubic",
    transforms=(
        ("random_resized_crop", dict(filter="bicubic")),
        ("flip", {}),
        ("rand_augment_timm", dict(magnitude=9, std=0.5)),
        ("erasing", dict(p=0.25)),
    ),
    threads=16,
    prefetch=8,
)
config.batch_size = 4096
config.epochs = 300.0
config.model = dict(name="convnext_tiny", drop_path=0.1, layer_scale=1e-6)
config.task = dict(name="classification", label_smoothing=0.1)
config.wrap = (("mixup", dict(alpha=0.8, cutmix_alpha=1.0)), ("ema", dict(decay=0.9999, warmup=False)))
config.optim.update(
    name="adamw",
    lr=4e-3,
    weight_decay=0.05,
    schedule="cosine",
    warmup_epochs=20.0,
    final=1e-6 / 4e-3,
)
config.evals = dict(val=dict(metric="topk", data="tfds:imagenet2012/validation", every_epochs=10.0))
