"""ViT-B/16 fine-tuned on ImageNet from an MAE, 100 epochs.

    python -m jaxvision.train --config configs/mae_vit_b16_finetune.py --workdir runs/mae_finetune \
        --config.init=runs/mae_vit_b16

Expected: 83.6 % top-1 from 1,600 epochs of MAE (the authors: 83.664; four seeds 83.63, 83.66, 83.52, 83.46, mean 83.57,
standard deviation 0.08). Not run by us.
Hardware: theirs 32 x V100, 7 h 11 min; 8 GPUs take --config.accumulate=4.
Source: He et al. 2021, https://arxiv.org/abs/2111.06377;
https://github.com/facebookresearch/mae/blob/main/FINETUNE.md. Different here: features are the class token (theirs: the
mean of the patches, "--cls_token performs similarly"), and the positions stay fixed.
"""

import jaxvision.config

config = jaxvision.config.default()
config.init = ""  # on the command line: without it this trains from scratch
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
config.batch_size = 1024
config.epochs = 100.0
config.model = dict(name="vit_b_16", positions="sincos", drop_path=0.1)
config.task = dict(name="classification", label_smoothing=0.1)
config.wrap = (("mixup", dict(alpha=0.8, cutmix_alpha=1.0)),)
config.optim.update(
    name="adamw",
    lr=2e-3,  # 5e-4 for 256 images
    weight_decay=0.05,
    no_decay=("class_token",),  # theirs: and the positions, which are fixed here
    layer_decay=0.65,
    schedule="cosine",
    warmup_epochs=5.0,
    final=1e-6 / 2e-3,
)
config.evals = dict(val=dict(metric="topk", data="tfds:imagenet2012/validation", every_epochs=5.0))
