"""Trainable parameters with 1,000 classes, as torchvision's and timm's documentation publishes them (timm: in
millions, here exact from its networks), and the smallest of each family for compiled tests."""

PUBLISHED = {
    # torchvision
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnext50_32x4d": 25_028_904,
    "resnext101_32x8d": 88_791_336,
    "resnext101_64x4d": 83_455_272,
    "wide_resnet50_2": 68_883_240,
    "wide_resnet101_2": 126_886_696,
    # timm
    "resnet18d": 11_708_744,
    "resnet34d": 21_816_904,
    "resnet50d": 25_576_264,
    "resnet101d": 44_568_392,
    "resnet152d": 60_212_040,
}

# Of each family: (variant, options that make it small, side of the image in pixels). Compiled by test_contract.py.
SMALL = {
    "resnet": ("resnet18", dict(depths=(1, 1), width=8, stem="small"), 16),
    "resnet, bottleneck": ("resnet50d", dict(depths=(1, 1), width=16, groups=2), 32),
}
# Families that make "tokens" instead of "c2".."c5".
TOKENS: set[str] = set()
