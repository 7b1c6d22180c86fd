"""The smallest training. A module of its own: importing conftest.py in a command would set its devices to eight."""

import jaxvision.config


def make_tiny_config():
    """One residual block on 8 x 8 digits. Without TensorBoard, which imports torch where there is one: seconds."""
    config = jaxvision.config.default()
    config.data.update(train="digits:train", size=8, resize=8, transforms=(("shift", dict(share=0.1)),))
    config.batch_size = 64
    config.steps = 12
    config.model = dict(name="resnet18", width=8, depths=(1,), stem="small")
    config.optim.update(lr=0.05, momentum=0.9)
    config.evals = dict(test=dict(metric="topk", data="digits:test", every_epochs=0, every_steps=6))
    config.checkpoint.update(every_epochs=0.0, every_steps=4)
    config.log.update(every_steps=4, tensorboard=False)
    return config
