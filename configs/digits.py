"""A small ResNet-18 on the real UCI digits: the first thing to run.

    python -m jaxvision.train --config configs/digits.py

Expected: test top-1 to be measured.
"""

import jaxvision.config

config = jaxvision.config.default()
config.seed = 0
config.data.update(
    train="digits:train",
    size=16,
    resize=16,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    transforms=(("resize", {}), ("affine", dict(degrees=10.0, share=0.1, scale=(0.9, 1.1)))),
)
config.batch_size = 128
config.epochs = 30.0
config.model = dict(name="resnet18", width=16, stem="small")
config.task = dict(name="classification", label_smoothing=0.1)
config.wrap = dict(ema=dict(decay=0.99))
config.optim.update(name="sgd", lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4, warmup=0.1)
config.evals = dict(test=dict(metric="topk", data="digits:test", every_epochs=5))
