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
    # vit
    "vit_b_16": 86_567_656,
    "vit_b_32": 88_224_232,
    "vit_l_16": 304_326_632,
    "vit_l_32": 306_535_400,
    "vit_tiny_patch16_224": 5_717_416,
    "vit_small_patch16_224": 22_050_664,
    "vit_small_patch32_224": 22_878_952,
    "deit_tiny_patch16_224": 5_717_416,
    "deit_small_patch16_224": 22_050_664,
    "deit_base_patch16_224": 86_567_656,
    # mixer
    "mixer_s32_224": 19_104_624,
    "mixer_s16_224": 18_528_264,
    "mixer_b32_224": 60_293_428,
    "mixer_b16_224": 59_880_472,
    "mixer_l32_224": 206_939_264,
    "mixer_l16_224": 208_196_168,
    # convnext
    "convnext_tiny": 28_589_128,
    "convnext_small": 50_223_688,
    "convnext_base": 88_591_464,
    "convnext_large": 197_767_336,
    # swin
    "swin_t": 28_288_354,
    "swin_s": 49_606_258,
    "swin_b": 87_768_224,
    # alex_net
    "alexnet": 61_100_840,
    # vgg
    "vgg11": 132_863_336,
    "vgg11_bn": 132_868_840,
    "vgg13": 133_047_848,
    "vgg13_bn": 133_053_736,
    "vgg16": 138_357_544,
    "vgg16_bn": 138_365_992,
    "vgg19": 143_667_240,
    "vgg19_bn": 143_678_248,
    # densenet
    "densenet121": 7_978_856,
    "densenet161": 28_681_000,
    "densenet169": 14_149_480,
    "densenet201": 20_013_928,
    # mobilenet
    "mobilenet_v2": 3_504_872,
    "mobilenet_v3_large": 5_483_032,
    "mobilenet_v3_small": 2_542_856,
    # efficientnet
    "efficientnet_b0": 5_288_548,
    "efficientnet_b1": 7_794_184,
    "efficientnet_b2": 9_109_994,
    "efficientnet_b3": 12_233_232,
    "efficientnet_b4": 19_341_616,
    "efficientnet_b5": 30_389_784,
    "efficientnet_b6": 43_040_704,
    "efficientnet_b7": 66_347_960,
    "efficientnet_v2_s": 21_458_488,
    "efficientnet_v2_m": 54_139_356,
    # bit
    "resnetv2_50x1_bit": 25_549_352,
    "resnetv2_50x3_bit": 217_319_080,
    "resnetv2_101x1_bit": 44_541_480,
    "resnetv2_101x3_bit": 387_934_888,
    "resnetv2_152x2_bit": 236_335_208,
    "resnetv2_152x4_bit": 936_533_224,
}

# Of each family: (variant, options that make it small, side of the image in pixels). Compiled by test_contract.py.
SMALL = {
    "resnet": ("resnet18", dict(depths=(1, 1), width=8, stem="small"), 16),
    "vit": ("vit_tiny_patch16_224", dict(width=16, depth=2, heads=2, patch=8), 16),
    "vit, options": (
        "vit_small_patch16_224",
        dict(width=16, depth=2, heads=2, patch=8, pooling="mean", registers=2, qk_norm=True, layer_scale=0.5),
        16,
    ),
    "vit, registers": (
        "vit_tiny_patch16_224",
        dict(width=16, depth=2, heads=2, patch=8, registers=3, qk_norm=True, layer_scale=0.1),
        16,
    ),
    "mixer": ("mixer_s32_224", dict(width=16, depth=2, patch=8), 16),
    "convnext": ("convnext_tiny", dict(depths=(1, 1), widths=(8, 16), layer_scale=0.5), 16),
    "swin": ("swin_t", dict(width=8, depths=(2, 1), heads=(2, 2), window=3), 36),
    "alex_net": ("alexnet", dict(width=8, hidden=16), 64),
    "vgg": ("vgg11_bn", dict(depths=(1, 1, 1), width=4, hidden=16), 16),
    "densenet": ("densenet121", dict(depths=(2, 2), growth=4, width=8), 32),
    "mobilenet": (
        "mobilenet_v3_small",
        dict(
            rows=((3, 8, 8, True, "relu", 2), (3, 16, 8, False, "hard_swish", 1), (3, 16, 8, True, "relu", 2)),
            last=16,
            hidden=16,
            stem=8,
        ),
        32,
    ),
    "efficientnet": (
        "efficientnet_b0",
        dict(stages=((True, 2, 3, 2, 8, 1), (False, 1, 3, 1, 8, 1), (False, 4, 3, 2, 8, 2)), stem=8, last=16),
        32,
    ),
    "bit": ("resnetv2_50x1_bit", dict(depths=(1, 1), width=0.125, groups=4), 32),
    "resnet, bottleneck": ("resnet50d", dict(depths=(1, 1), width=16, groups=2), 32),
}
# Families that make "tokens" instead of "c2".."c5".
TOKENS = {"vit", "mixer"}
