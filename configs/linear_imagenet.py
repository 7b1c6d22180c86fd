"""Linear evaluation on ImageNet: a linear layer on frozen features, 90 epochs.

    python -m jaxvision.train --config configs/linear_imagenet.py --workdir runs/linear \
        --config.init=runs/byol_resnet50

Of a ViT: --config.model.name=vit_small_patch16_224; of an MAE: --config.model.name=vit_b_16
--config.model.positions=sincos --config.task.norm=True --config.optim.warmup_epochs=10
Expected: it depends on what it begins from. The authors report SimSiam 100 epochs 68.1, SimCLR 100 epochs 64.5, BYOL
74.3 (ResNet-50); DINO 100 epochs 73.8 to 74.0 (ViT-S/16, four blocks' class tokens); MAE 68.0 (ViT-B/16, batch 16384,
--config.optim.lr=6.4). MoCo v2 gives a spread: 67.5 +- 0.1 over five runs of 200 epochs and their linear evaluation
(https://github.com/facebookresearch/moco). Not run by us.
Hardware: theirs 8 x V100; the backward pass is that of one layer.
Source: schedule of Chen and He 2020 (SimSiam), https://arxiv.org/abs/2011.10566, and
https://github.com/facebookresearch/simsiam/blob/main/main_lincls.py (LARS, lr 0.1 for 256 images, no decay).
"""

import jaxvision.config

config = jaxvision.config.default()
config.init = ""  # on the command line: without it the features are random
config.data.update(
    train="tfds:imagenet2012/train",
    size=224,
    resize=256,
    filter="bicubic",
    transforms=(("random_resized_crop", dict(filter="bicubic")), ("flip", {})),
    threads=16,
    prefetch=8,
)
config.batch_size = 4096
config.epochs = 90.0
config.model = dict(name="resnet50")
config.task = dict(name="linear_probe")
config.optim.update(name="lars", lr=1.6, momentum=0.9, weight_decay=0.0, schedule="cosine")
config.evals = dict(val=dict(metric="topk", data="tfds:imagenet2012/validation", every_epochs=10.0))
