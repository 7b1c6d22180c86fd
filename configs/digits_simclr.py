"""SimCLR on the real UCI digits, without a label: the first self-supervised thing to run.

    python -m jaxvision.train --config configs/digits_simclr.py --workdir runs/digits_simclr

Then fine-tune on five labels a class: docs/self_supervision.md.
Expected: a linear probe on five labels a class has 0.922 +- 0.008 on the 360 test digits (mean and standard deviation
of seeds 0 to 4, each the mean of five draws of the labels), random weights 0.590 +- 0.029; k-NN with all labels 0.978
(seed 0).
Hardware: 2 CPU cores, minutes.
Source: Chen et al. 2020, https://arxiv.org/abs/2002.05709; data and split as in configs/digits.py; recipe ours.
"""

import jaxvision.config

VIEW = (
    ("affine", dict(degrees=15.0, share=0.15, scale=(0.8, 1.2), shear=10.0)),
    ("color_jitter", dict(brightness=0.4, contrast=0.4, saturation=0.0)),
    ("erasing", dict(p=0.3, area=(0.05, 0.15), value="constant")),
)

config = jaxvision.config.default()
config.data.update(
    train="digits:train",
    size=8,
    resize=8,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    transforms=(("multi_view", dict(views=(VIEW, VIEW))),),
    threads=1,
)
config.batch_size = 256
config.epochs = 90.0
config.model = dict(name="resnet18", width=16, depths=(1, 1, 1), stem="small")
config.task = dict(name="simclr", temperature=0.2, widths=(128, 64))
config.optim.update(name="adamw", lr=5e-3, weight_decay=1e-4, warmup_share=0.1)
config.evals = dict(
    knn=dict(metric="knn", data="digits:test", bank="digits:train", every_epochs=30.0),
    probe=dict(metric="probe", data="digits:test", bank="digits:train", per_class=5, every_epochs=30.0),
)
config.checkpoint.best = "knn"  # by its first metric
