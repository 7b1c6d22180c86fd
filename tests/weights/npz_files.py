"""Files in the names of Google's .npz checkpoints, written from the shapes that the format has."""

import numpy as np

WIDTH, DEPTH, HEADS, PATCH, SIDE, CLASSES = 24, 2, 3, 8, 32, 7
POSITIONS = (SIDE // PATCH) ** 2
SMALL = dict(width=WIDTH, depth=DEPTH, heads=HEADS, patch=PATCH)


def vit_file(spelling: str, pooling: str, seed: int = 0) -> dict[str, np.ndarray]:
    """What a file holds: `spelling` "augreg" numbers a block's modules from 0 to 3, "big_vision" by kind."""
    rng = np.random.default_rng(seed)
    old = spelling == "augreg"
    attention, mlp, second = ("1", "3", "2") if old else ("0", "0", "1")
    hidden = 4 * WIDTH
    shapes = {
        "embedding/kernel": (PATCH, PATCH, 3, WIDTH),
        "embedding/bias": (WIDTH,),
        "Transformer/encoder_norm/scale": (WIDTH,),
        "Transformer/encoder_norm/bias": (WIDTH,),
        "head/kernel": (WIDTH, CLASSES),
        "head/bias": (CLASSES,),
    }
    if pooling == "token":
        shapes["cls"] = (1, 1, WIDTH)
    positions = "Transformer/posembed_input/pos_embedding" if old else "pos_embedding"
    shapes[positions] = (1, POSITIONS + int(old and pooling == "token"), WIDTH)
    for k in range(DEPTH):
        block = f"Transformer/encoderblock_{k}"
        for norm in ("0", second):
            shapes |= {f"{block}/LayerNorm_{norm}/{leaf}": (WIDTH,) for leaf in ("scale", "bias")}
        for part in ("query", "key", "value"):
            name = f"{block}/MultiHeadDotProductAttention_{attention}/{part}"
            shapes |= {f"{name}/kernel": (WIDTH, HEADS, WIDTH // HEADS), f"{name}/bias": (HEADS, WIDTH // HEADS)}
        name = f"{block}/MultiHeadDotProductAttention_{attention}/out"
        shapes |= {f"{name}/kernel": (HEADS, WIDTH // HEADS, WIDTH), f"{name}/bias": (WIDTH,)}
        for dense, (a, b) in enumerate([(WIDTH, hidden), (hidden, WIDTH)]):
            name = f"{block}/MlpBlock_{mlp}/Dense_{dense}"
            shapes |= {f"{name}/kernel": (a, b), f"{name}/bias": (b,)}
    return random(shapes, rng)


def scanned(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The blocks as one, with an axis in front."""
    first = {name: name.replace("encoderblock_0", "encoderblock") for name in state if "encoderblock_0/" in name}
    stacked = {
        new: np.stack([state[name.replace("_0/", f"_{k}/", 1)] for k in range(DEPTH)]) for name, new in first.items()
    }
    return {**{name: array for name, array in state.items() if "encoderblock_" not in name}, **stacked}


def mixer_file(tokens: int = POSITIONS, depth: int = DEPTH, seed: int = 0) -> dict[str, np.ndarray]:
    """A Mixer's, in the present spelling."""
    rng = np.random.default_rng(seed)
    shapes = {"stem/kernel": (PATCH, PATCH, 3, WIDTH), "stem/bias": (WIDTH,), "head/kernel": (WIDTH, CLASSES)}
    shapes |= {"head/bias": (CLASSES,)}
    shapes |= {f"pre_head_layer_norm/{leaf}": (WIDTH,) for leaf in ("scale", "bias")}
    for k in range(depth):
        shapes |= {f"MixerBlock_{k}/LayerNorm_{n}/{leaf}": (WIDTH,) for n in (0, 1) for leaf in ("scale", "bias")}
        for kind, width, hidden in (("token", tokens, WIDTH // 2), ("channel", WIDTH, 4 * WIDTH)):
            for dense, (a, b) in enumerate([(width, hidden), (hidden, width)]):
                name = f"MixerBlock_{k}/{kind}_mixing/Dense_{dense}"
                shapes |= {f"{name}/kernel": (a, b), f"{name}/bias": (b,)}
    return random(shapes, rng)


def random(shapes: dict[str, tuple[int, ...]], rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {
        name: (rng.normal(0, 0.2, shape) + name.endswith("/scale")).astype(np.float32) for name, shape in shapes.items()
    }
