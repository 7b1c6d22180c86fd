"""AlexNet on ImageNet, 90 epochs, as torchvision trains it.

    python -m jaxvision.train --config configs/alexnet.py --workdir runs/alexnet

Expected: 56.5 % top-1 (56.522, torchvision's AlexNet_Weights.IMAGENET1K_V1). Not run by us.
The paper's own 62.5 % is of ILSVRC-2010, other images, and of the network in two towers with ten crops.
Hardware: theirs 8 x V100 with 32 images each; one accelerator with 16 GB holds the batch.
Source: Krizhevsky 2014, https://arxiv.org/abs/1404.5997; hyper-parameters of
https://github.com/pytorch/vision/blob/main/references/classification/README.md.
"""

import jaxvision.config

config = jaxvision.config.default()
config.data.update(
    train="tfds:imagenet2012/train",
    size=224,
    resize=256,
    transforms=(("random_resized_crop", {}), ("flip", {})),
    threads=16,
    prefetch=8,
)
config.batch_size = 256
config.epochs = 90.0
config.model = dict(name="alexnet", dropout=0.5)
config.task = dict(name="classification")
config.optim.update(
    name="sgd",
    lr=0.01,
    momentum=0.9,
    weight_decay=1e-4,
    schedule="step",
    milestones_epochs=(30, 60),
    gamma=0.1,
)
config.evals = dict(val=dict(metric="topk", data="tfds:imagenet2012/validation", every_epochs=5.0))
