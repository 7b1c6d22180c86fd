"""VGG-16 (without BatchNorm) on ImageNet, 90 epochs, as torchvision trains it.

    python -m jaxvision.train --config configs/vgg16.py --workdir runs/vgg16

Expected: 71.6 % top-1 (71.592, torchvision's VGG16_Weights.IMAGENET1K_V1; the authors' weights have 71.5 with one crop
as https://github.com/KaimingHe/deep-residual-networks measures them). Not run by us. With BatchNorm, 73.4 (73.360):
--config.model.name=vgg16_bn --config.optim.lr=0.1
Hardware: theirs 8 x V100 with 32 images each. On fewer chips --config.accumulate=4 keeps the batch.
Source: Simonyan and Zisserman 2014, https://arxiv.org/abs/1409.1556; hyper-parameters of
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
config.model = dict(name="vgg16", dropout=0.5)
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
