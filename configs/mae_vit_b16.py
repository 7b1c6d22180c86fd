"""MAE: ViT-B/16 on ImageNet without labels, 1,600 epochs.

    python -m jaxvision.train --config configs/mae_vit_b16.py --workdir runs/mae_vit_b16

Then configs/mae_vit_b16_finetune.py, which is what it is for; k-NN says little of an MAE.
Expected: fine-tuned 83.6 % top-1 (the paper), linear 68.0 (67.8 with the authors' PyTorch). Not run by us.
Hardware: theirs 64 V100, 42 hours for 800 epochs of ViT-L, a larger network.
Source: He et al. 2021, https://arxiv.org/abs/2111.06377;
https://github.com/facebookresearch/mae/blob/main/PRETRAIN.md.
"""

import jaxvision.config

config = jaxvision.config.default()
config.data.update(
    train="tfds:imagenet2012/train",
    size=224,
    resize=256,
    filter="bicubic",
    transforms=(("random_resized_crop", dict(scale=(0.2, 1.0), filter="bicubic")), ("flip", {})),
    threads=16,
    prefetch=8,
)
config.batch_size = 4096
config.epochs = 1600.0
config.model = dict(name="vit_b_16", positions="sincos")
config.task = dict(
    name="mae", hidden=0.75, decoder_width=512, decoder_depth=8, decoder_heads=16, normalise_patches=True
)
config.optim.update(
    name="adamw",
    lr=2.4e-3,  # 1.5e-4 for 256 images
    b1=0.9,
    b2=0.95,
    weight_decay=0.05,
    schedule="cosine",
    warmup_epochs=40.0,
)
config.evals = dict(
    knn=dict(metric="knn", data="tfds:imagenet2012/validation", bank="tfds:imagenet2012/train", every_epochs=100.0)
)
