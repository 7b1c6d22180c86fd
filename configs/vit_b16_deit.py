"""ViT-B/16 on ImageNet, 300 epochs, as DeiT-B without distillation.

    python -m jaxvision.train --config configs/vit_b16_deit.py --workdir runs/vit_b16_deit

Expected: 81.8 % top-1 (81.846, the authors' README; timm measures 81.98 of the same weights, torchvision's own ViT-B/16
has 81.07). Not run by us.
Hardware: theirs 2 nodes of 8 GPUs.
Source: Touvron et al. 2020, https://arxiv.org/abs/2012.12877; defaults of
https://github.com/facebookresearch/deit/blob/main/main.py. Different here: kernels begin as Glorot's.
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
    repeats=3,  # an epoch is as long as ever, and has a third of the images three times
    threads=16,
    prefetch=8,
)
config.batch_size = 1024
config.epochs = 300.0
config.model = dict(name="deit_base_patch16_224", drop_path=0.1)
config.task = dict(name="classification", label_smoothing=0.1)
config.wrap = (("mixup", dict(alpha=0.8, cutmix_alpha=1.0)),)
config.optim.update(
    name="adamw",
    lr=1e-3,  # 5e-4 for 512 images
    weight_decay=0.05,
    no_decay=("class_token", "pos_embedding"),  # timm's VisionTransformer.no_weight_decay
    schedule="cosine",
    warmup_epochs=5.0,
    final=0.01,  # 1e-5
)
config.evals = dict(val=dict(metric="topk", data="tfds:imagenet2012/validation", every_epochs=10.0))
