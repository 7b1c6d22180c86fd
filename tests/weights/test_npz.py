"""Google's .npz files: every array accounted for, what is wrong with one is said, nothing is unpickled."""

import json
import pickle
import zipfile

import jax
import numpy as np
import pytest
from flax import traverse_util

import jaxvision.config
from jaxvision import models
from jaxvision.errors import UserError
from jaxvision.training import build, restore
from jaxvision.weights import npz, published
from tests.weights.npz_files import CLASSES, DEPTH, PATCH, POSITIONS, SIDE, SMALL, WIDTH, mixer_file, scanned, vit_file
from tests.weights.test_published import run

NAMES = tuple(map(str, range(CLASSES)))
CASES = [(spelling, pooling) for spelling in ("augreg", "big_vision") for pooling in ("token", "mean")]


def save(folder, state, name="weights.npz"):
    np.savez(folder / name, **state)
    return folder / name


def config_of(pooling="token", **model):
    config = jaxvision.config.default()
    config.model = dict(name="vit_small_patch16_224", pooling=pooling, **(SMALL | model))
    config.data.update(train="fake:16x32", size=SIDE, resize=SIDE, mean=(0.5,) * 3, std=(0.5,) * 3, filter="bicubic")
    config.steps = 1
    return config


def plan(path, config=None, classes=NAMES):
    config = config or config_of()
    source = restore.find(f"augreg:vit_small_patch16_224={path}")
    return restore.load_plan(source, build.task(config, len(classes)), config, classes)


def leaves_of(made):
    return traverse_util.flatten_dict(made.given, sep="/")


@pytest.mark.parametrize(("spelling", "pooling"), CASES)
def test_every_array_goes_where_it_belongs(tmp_path, spelling, pooling):
    state = vit_file(spelling, pooling)
    made = plan(save(tmp_path, state), config_of(pooling))
    given = leaves_of(made)
    assert not [*made.reinitialised, *made.dropped]
    assert len(given) + 4 * DEPTH == len(state)  # query, key and value are one kernel and one bias
    n = 1 if spelling == "augreg" else 0
    block = f"Transformer/encoderblock_1/MultiHeadDotProductAttention_{n}"
    kernel = given["params/model/layer_1/qkv/kernel"]
    for k, part in enumerate(("query", "key", "value")):
        np.testing.assert_array_equal(
            kernel[:, k * WIDTH : (k + 1) * WIDTH], state[f"{block}/{part}/kernel"].reshape(WIDTH, -1)
        )
    np.testing.assert_array_equal(
        given["params/model/layer_1/out/kernel"], state[f"{block}/out/kernel"].reshape(WIDTH, -1)
    )
    positions = given["params/model/pos_embedding"]
    assert positions.shape == (1, POSITIONS + (pooling == "token"), WIDTH)
    if (spelling, pooling) == ("big_vision", "token"):
        assert not positions[0, 0].any()
        np.testing.assert_array_equal(positions[:, 1:], state["pos_embedding"])
        (line,) = made.resized
        assert "zeros for the class token" in line
    else:
        assert not made.resized


@pytest.mark.parametrize("change", ["flat", "grid", "scanned", "params/", "opt/target/", "params/img/", "bfloat16"])
def test_other_ways_of_writing_the_same(tmp_path, change):
    state = vit_file("big_vision", "mean")
    want = leaves_of(plan(save(tmp_path, state), config_of("mean")))
    if change == "flat":
        state["pos_embedding"] = state["pos_embedding"][0]
    elif change == "grid":
        side = SIDE // PATCH
        state["pos_embedding"] = state["pos_embedding"].reshape(side, side, -1)
    elif change == "scanned":
        state = scanned(state)
    elif change == "bfloat16":  # as numpy writes it: two bytes without a name; and the values that it can hold
        bits = {name: array.view("<u4") >> 16 for name, array in state.items()}
        want = leaves_of(plan(save(tmp_path, {n: (b << 16).view("<f4") for n, b in bits.items()}), config_of("mean")))
        state = {name: b.astype("<u2").view("V2") for name, b in bits.items()}
    else:
        state = {change + name: array for name, array in state.items()}
        state |= {"opt/state/step": np.zeros((), np.int32), "opt/state/embedding/kernel/grad_ema": np.zeros(3)}
    made = plan(save(tmp_path, state), config_of("mean"))
    assert made.dropped == (["opt/... (2 arrays of the training)"] if "/" in change else [])
    got = leaves_of(made)
    assert got.keys() == want.keys()
    assert all(np.array_equal(got[name], want[name]) for name in want)


def test_networks_without_learnt_positions(tmp_path):
    """sincos2d: the file has none; sin x, cos x, sin y, cos y, at frequencies from 1 to 1/10000."""
    state = vit_file("big_vision", "mean")
    del state["pos_embedding"]
    made = plan(save(tmp_path, state), config_of("mean"))
    (line,) = made.resized
    assert "sines and cosines of 4 x 4" in line
    got = leaves_of(made)["params/model/pos_embedding"].reshape(4, 4, 4, WIDTH // 4)
    for row, column in [(0, 0), (2, 3), (3, 1)]:
        for k in range(WIDTH // 4):
            rate = 10000.0 ** (-k / (WIDTH / 4 - 1))
            want = [np.sin(column * rate), np.cos(column * rate), np.sin(row * rate), np.cos(row * rate)]
            np.testing.assert_allclose(got[row, column, :, k], want, atol=1e-6)
    old = vit_file("augreg", "token")
    del old["Transformer/posembed_input/pos_embedding"]
    with pytest.raises(UserError, match="missing in the source: params/model/pos_embedding"):
        plan(save(tmp_path, old))


def test_another_size_is_resized(tmp_path):
    config = config_of("mean")
    config.data.update(size=64, resize=64)
    made = plan(save(tmp_path, vit_file("big_vision", "mean")), config)
    assert made.resized == [
        "params/model/pos_embedding: [1, 16, 24] -> [1, 64, 24], bicubic from 4 x 4 to 8 x 8 positions"
    ]


@pytest.mark.parametrize("family", ["vit", "mixer"])
def test_there_and_back(family):
    """to_npz and from_npz: byte for byte."""
    state = vit_file("augreg", "token") if family == "vit" else mixer_file()
    name, options = ("vit_small_patch16_224", SMALL) if family == "vit" else ("mixer_s16_224", MIXER)
    model = getattr(models, name)(classes=CLASSES, **options)
    got = npz.from_npz(state, abstract(model), model, family, "x.npz")
    assert not got.unused
    back = npz.to_npz(got.leaves, model, family)
    assert back.keys() == state.keys()
    assert all(back[k].tobytes() == state[k].tobytes() and back[k].shape == state[k].shape for k in state)


MIXER = dict(width=WIDTH, depth=DEPTH, patch=PATCH)


def abstract(model):
    image = np.zeros((1, SIDE, SIDE, 3), np.float32)
    variables = jax.eval_shape(lambda k: model.init(k, image, train=False), jax.random.key(0))
    return traverse_util.flatten_dict(variables, sep="/")


def logits_of(model, variables, image):
    return jax.jit(lambda v, x: model.apply(v, x, train=False)["logits"])(variables, image)


def older(state):
    """A Mixer's file as it was written before flax's linen modules."""
    spelled = {}
    for name, array in state.items():
        name = name.replace("MixerBlock_", "Mixer/encoderblock_").replace("stem/", "embedding/")
        name = name.replace("pre_head_layer_norm/", "Mixer/encoder_norm/").replace("LayerNorm_1/", "LayerNorm_2/")
        for k in (0, 1):
            if f"_mixing/Dense_{k}/" in name:
                name = name.replace(f"_mixing/Dense_{k}/", "_mixing_phase_0/") + str(k + 1)
                array = array[None]
        spelled[name] = array
    return spelled


@pytest.mark.parametrize("spell", [dict, older])
def test_mixer_computes_what_the_names_say(spell):
    """Against the paper's formula, in float64 numpy, on the file's arrays by the file's names."""
    state = mixer_file()
    model = models.mixer_s16_224(classes=CLASSES, **MIXER)
    got = npz.from_npz(spell(state), abstract(model), model, "mixer", "x.npz")
    assert not got.unused
    image = np.random.default_rng(1).normal(size=(2, SIDE, SIDE, 3))
    variables = traverse_util.unflatten_dict(got.leaves, sep="/")
    logits = logits_of(model, variables, image.astype(np.float32))
    wide = {name: array.astype(np.float64) for name, array in state.items()}
    np.testing.assert_allclose(logits, mixer_in_numpy(wide, image), rtol=0, atol=2e-5)


def mixer_in_numpy(state, image):
    from scipy.special import erf

    def norm(x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return x * state[f"{name}/scale"] + state[f"{name}/bias"]

    def dense(x, name):
        return x @ state[f"{name}/kernel"] + state[f"{name}/bias"]

    def mlp(x, name):
        x = dense(x, f"{name}/Dense_0")
        return dense(x * (1 + erf(x / np.sqrt(2))) / 2, f"{name}/Dense_1")

    n = SIDE // PATCH
    x = image.reshape(-1, n, PATCH, n, PATCH, 3).transpose(0, 1, 3, 2, 4, 5).reshape(len(image), n * n, -1)
    x = x @ state["stem/kernel"].reshape(-1, WIDTH) + state["stem/bias"]
    for k in range(DEPTH):
        block = f"MixerBlock_{k}"
        y = norm(x, f"{block}/LayerNorm_0").swapaxes(1, 2)
        x = x + mlp(y, f"{block}/token_mixing").swapaxes(1, 2)
        x = x + mlp(norm(x, f"{block}/LayerNorm_1"), f"{block}/channel_mixing")
    return dense(norm(x, "pre_head_layer_norm").mean(1), "head")


# --------------------------------------------------------------------------- what is wrong


def fault(kind, state, rng):
    """(state with one fault, what the message must name)."""
    state = dict(state)
    name = sorted(state)[rng.integers(len(state))]
    if kind == "missing":
        del state[name]
    elif kind == "extra":
        state[f"{name}_2"] = state[name]
        name = f"{name}_2"
    elif kind == "not finite":
        array = state[name].copy()
        array.flat[rng.integers(array.size)] = [np.nan, np.inf, -np.inf][rng.integers(3)]
        state[name] = array
    elif kind == "integers":
        state[name] = state[name].astype([np.int64, np.int32, np.uint8, bool][rng.integers(4)])
    elif kind == "cut":
        name = name.replace("head/bias", "head/kernel")  # of the bias alone, it says another number of classes
        state[name] = state[name][..., :-1]
    elif kind == "transposed":  # of a leaf where it shows: a square one looks as it did
        shows = [n for n in sorted(state) if state[n].T.shape != state[n].shape]
        name = shows[rng.integers(len(shows))]
        state[name] = state[name].T
    elif kind == "pickle":
        state[name] = np.array([{"a": 1}], object)
    return state, name


def ours_of(name):
    """The end of our name of what a message may say instead of theirs."""
    leaf = npz._respelled(name, "vit")
    table = {npz.name_of(n, "vit"): n.removeprefix("params/") for n in abstract(models.vit_small_patch16_224(
        classes=CLASSES, **SMALL))}  # fmt: skip
    for part in ("query", "key", "value"):
        leaf = leaf.replace(f"/{part}/", "/qkv/")
    return table.get(leaf, leaf)


@pytest.mark.parametrize("spelling", ["augreg", "big_vision"])
@pytest.mark.parametrize("kind", ["missing", "extra", "not finite", "integers", "cut", "transposed", "pickle"])
def test_faults_are_named(tmp_path, kind, spelling):
    state = vit_file(spelling, "token")
    for seed in range(4):
        rng = np.random.default_rng([seed, len(kind)])
        broken, name = fault(kind, state, rng)
        if (kind, name) in (("missing", "cls"), ("missing", "pos_embedding")):
            continue  # tests of their own
        with pytest.raises(UserError) as caught:
            plan(save(tmp_path, broken))
        named = [name, ours_of(name), name.replace("/query/", "/{query,key,value}/")]
        named += [name.replace(f"/{part}/", "/{query,key,value}/") for part in ("key", "value")]
        assert any(n in str(caught.value) for n in named), (seed, name, str(caught.value))


@pytest.mark.parametrize("compressed", [False, True])
def test_files_that_are_not_whole(tmp_path, compressed):
    path = tmp_path / "weights.npz"
    (np.savez_compressed if compressed else np.savez)(path, **vit_file("augreg", "token"))
    whole = path.read_bytes()
    for seed in range(12):
        rng = np.random.default_rng(seed)
        data = bytearray(whole)
        if seed % 2:
            data = data[: rng.integers(len(data))]
        else:  # within the first array, which is checked by its sum
            start = int(rng.integers(40, 4000))
            data[start : start + 8] = bytes(b ^ 0xFF for b in data[start : start + 8])
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"weights\.npz"):
            plan(path)


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("it was unpickled",))


def test_nothing_is_unpickled(tmp_path):
    path = tmp_path / "weights.npz"
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(UserError, match=r"no whole \.npz file"):
        plan(path)
    state = vit_file("augreg", "token")
    state["head/bias"] = np.array([Trap()], object)
    with pytest.raises(UserError, match=r"head/bias\.npy is a pickle, which can run code"):
        plan(save(tmp_path, state))


def test_a_header_that_promises_too_much(tmp_path):
    path = save(tmp_path, vit_file("augreg", "token"))
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("huge.npy", b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + b"{'descr': '<f4', "
                      b"'fortran_order': False, 'shape': (10000000000000,), }".ljust(117) + b"\n")  # fmt: skip
    with pytest.raises(UserError, match=r"huge\.npy says \[10000000000000\], which is more than it holds"):
        plan(path)


@pytest.mark.parametrize(
    ("change", "model", "wanted"),
    [
        (lambda s: s.pop("cls"), {}, "set config.model.pooling = 'mean'"),
        (lambda s: None, {"heads": 4}, "has 3 heads, this network 4: set config.model.heads"),
        (lambda s: s.update({"pre_logits/kernel": np.zeros((WIDTH, WIDTH), np.float32)}), {},
         r'of no use here: pre_logits/kernel.*config.init_policy.ignore = \("pre_logits/kernel\$",\)'),
        (lambda s: s.update({"Transformer/encoderblock_0/LayerNorm_1/bias": s["embedding/bias"]}), {},
         "LayerNorm_2/bias and .*LayerNorm_1/bias are the same leaf|LayerNorm_1/bias and .*LayerNorm_2/bias are"),
        (lambda s: s.update({k.replace("_0/", "_2/", 1): v for k, v in s.items() if "encoderblock_0/" in k}), {},
         "of no use here: Transformer/encoderblock_2/"),
        (lambda s: s.pop("embedding/kernel"), {}, "neither embedding/kernel nor stem/kernel"),
    ],
)  # fmt: skip
def test_what_does_not_fit_says_the_next_step(tmp_path, change, model, wanted):
    state = vit_file("augreg", "token")
    change(state)
    with pytest.raises(UserError, match=wanted):
        plan(save(tmp_path, state), config_of(**model))


def test_layers_that_we_have_not_can_be_left(tmp_path):
    """As docs/models.md says it: pre_logits ignored, the head afresh."""
    state = vit_file("augreg", "token")
    state |= {"pre_logits/kernel": np.zeros((WIDTH, WIDTH), np.float32), "pre_logits/bias": np.zeros(WIDTH, np.float32)}
    config = config_of()
    config.init_policy.update(ignore=("^pre_logits/",), fresh=("head",))
    made = plan(save(tmp_path, state), config)
    assert made.dropped == ["head/bias", "head/kernel", "pre_logits/bias", "pre_logits/kernel"]
    assert made.reinitialised == ["params/model/head/bias", "params/model/head/kernel"]


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("augreg:vit_b_16", "names no file: write augreg:NAME=/path/to/file"),
        ("augreg:resnet50=/x/a.npz", "no network 'resnet50' of Google's here"),
        ("augreg:vit_base_patch16_22=/x/a.npz", "did you mean 'vit_base_patch16_224'"),
        ("augreg:vit_b_16=/x/none.npz", "no file /x/none.npz"),
        ("augreg:vit_small_patch16_224.augreg_in1={path}", "did you mean 'augreg_in1k'"),
        ("timm:vit_small_patch16_224.augreg_in1k={path}", "is no .safetensors file: write augreg:NAME="),
        ("augreg:vit_b_16={folder}/a.safetensors", "is no .npz file: write timm: or torchvision:NAME="),
    ],
)
def test_a_source_that_is_none(tmp_path, source, wanted):
    path = save(tmp_path, vit_file("augreg", "token"))
    (tmp_path / "a.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=wanted):
        restore.find(source.format(path=path, folder=tmp_path))


def test_pixels(tmp_path):
    """timm's for the same weights, sized as the positions are; Google's where timm has none."""
    path = save(tmp_path, vit_file("augreg", "token") | {
        "Transformer/posembed_input/pos_embedding": np.zeros((1, 197, WIDTH), np.float32)})  # fmt: skip
    found = restore.find(f"augreg:vit_base_patch16_224.augreg_in21k={path}")
    assert found.model == "vit_b_16"
    timm = published.table()["timm"]["vit_base_patch16_224"]["augreg_in21k"]
    assert found.contract == published.InputContract(**timm)
    large = save(tmp_path, vit_file("augreg", "token") | {
        "Transformer/posembed_input/pos_embedding": np.zeros((1, 577, WIDTH), np.float32)}, "large.npz")  # fmt: skip
    contract = restore.find(f"augreg:vit_b_16={large}").contract
    assert (contract.size, contract.resize, contract.mean) == (384, 384, (0.5,) * 3)
    mixer = restore.find(f"augreg:mixer_s32_224={save(tmp_path, mixer_file(), 'mixer.npz')}").contract
    assert (mixer.size, mixer.resize, mixer.filter, mixer.std) == (224, 256, "bilinear", (0.5,) * 3)


def test_predict_takes_a_file(tmp_path, capsys):
    """ViT-Ti/16 without a class token, for 32 px images: pooling and size are read from the file."""
    from PIL import Image

    rng = np.random.default_rng(0)
    model = models.vit_tiny_patch16_224(classes=3, pooling="mean")
    leaves = {n: rng.normal(0, 0.05, leaf.shape).astype(np.float32) for n, leaf in abstract(model).items()}
    path = save(tmp_path, npz.to_npz(leaves, model, "vit"))
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    assert run("predict", "--from", f"augreg:vit_tiny_patch16_224={path}", "--json", str(tmp_path / "red.png")) == 0
    (answer,) = json.loads(capsys.readouterr().out)["predictions"]
    image = np.broadcast_to(np.float32([1, -1, -1]), (1, 32, 32, 3))
    logits = logits_of(model, traverse_util.unflatten_dict(leaves, sep="/"), image)
    assert answer["predictions"][0]["class"] == str(int(np.argmax(logits)))
