"""A part of a JPEG file equals the same part of Pillow's whole decode, with and without libjpeg-turbo's interface."""

import base64
import functools
import io
import platform
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxvision.data import decode, jpeg
from jaxvision.data.decode import Encoded, open_image
from jaxvision.errors import Unreadable

# What Pillow cannot write, 40 x 20 pixels each, by libjpeg-turbo 3 (zlib, base 85).
PACKED = {
    "4:1:1": "c-s4a<NpH&0WUXCHwH#V1_nkTWcYuZ!I^=VlZ%^+gO{6&n~#r|Usyp@SV%}%T}Dn^K~K}rKu=Rw$Jolt&e+V&Tu0X-+|kX)FDN+3$"
    "Sx`|Dj>ltFvuTd2qPaKpRk~?ny9Fnzp1XNKgr<#0R}-11`!4gW=2N_CP7AKLB{__7{q{11v(Q6Ff*_L#U%w8n3z!|n3!1-13_9C(Y3I#FayP91Q"
    "{4vQ1vh}F)OmL8Vdfu#lQoUVG?8(WUyyArD`Lq`QW8LyH|zA+4;+Uz1(3Hd`OAks#?@6%Q0vk-;@s}%bS<l0Oc0&mfVrmd??61*S0I#R8htA;3bs"
    "@FNF$9IxQk+ecd3p^R@F5PoP%I*DqGCj~DoV69BzdU6c",
    "4:4:0": "c-s4a<NpH&0WUXCHwH#V1_nkTWcYuZ!I^=VlZ%^+gO{6&n~#r|Usyp@SV%}%T}Dn^K~K}rKu=Rw$Jolt&e+V&Tu0X-+|kX)FDN+3$"
    "Sx`|Dj>ltFvuTd2qPaKpRk~?ny9Fnzp1XNKgr<#0R}-11`!4gW=0_fCP7AKLB{__7{nPEn1Rkj2Fz@%KnY0!1|~EaCT5nzK#(4w@0d|!SXkNEL3#"
    "u+^e}=n{lCS)0~BWxWENzwXPDwu5wO%ock|s#Vtd=Pf)BN7KCpcE;@3BcmHu2J%Nx~qFMfR^X{n7y&^+dO@A}s#c1`)P(5phIdY9eahKcG7DYuQX"
    "Zp#4~GPmWUlP{?}V40o#I;YBI4nuKHZEnBE<OZSKzO|eG-vj_LD`k`",
    "4:4:1": "c-s4a<NpH&0WUXCHwH#V1_nkTWcYuZ!I^=VlZ%^+gO{6&n~#r|Usyp@SV%}%T}Dn^K~K}rKu=Rw$Jolt&e+V&Tu0X-+|kX)FDN+3$"
    "Sx`|Dj>ltFvuTd2qPaKpRk~?ny9Fnzp1XNKgr<#0R}-11`!4gW=0VPCP7AKLB{__7{q{11v(Q6uraU##U%w8n3z!|n3!1-13_9C(Y3I!vH`^<1c6"
    "FW#2J{GSXlqxV&DOq#3aZp$Y9T)G3A5Pln-}2Cbz`S>-IVHeuEHPfUindX7?MGr8WXfZOnyK9<t2qc3=0KQPZDA)1UW9r-j4wMHgT1JKz<3kSq9bp"
    "^~3~=Zh^>?>GFv2>{pPTlx",
    "arithmetic": "c-s4a<NpH&0WUXCHwH#V1_nkTWcYuZ!I^=VlZ%^+gO{6&n~#r|Usyp@SV%}%T}Dn^K~K}rKu=Rw$Jolt&e+V&Tu0X-+|kX)FDN"
    "+3$Sx`|Dj>ltFvuTd2qPaKpRk~?ny9Fnzp1XNKgr<#Nd`d<1`!4gW=16jCP7AKLB{`Q7`PY&1Xvjb1X=&zV&GwB1WGUqGT1ZxXQ&XY)NI+j*YDK1i"
    ";u4?V_d|+rn5OkNryG`+S83qjG{MZRH}2TA6%0m&UF1}%4f$t!T+w5S1g#fM(65f9koFB2-#1`f7j%=s;SJHz4F;y*WPT^j~t<wAN;=w0Jb$*p8",
}
SUBSAMPLINGS = {"4:4:4": 0, "4:2:2": 1, "4:2:0": 2}
KINDS = (*SUBSAMPLINGS, "grey", "progressive", "restarts")
SIZES = ((1, 1), (7, 13), (13, 7), (17, 33), (64, 64), (375, 500))  # height, width


def picture(height, width, seed=0):
    """Slopes and blocks of noise: something in every frequency."""
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(seed).integers(-60, 60, (height, width, 3))
    slopes = np.stack([x * 5 % 256, y * 3 % 256, (x + y) * 2 % 256], -1)
    return np.clip(slopes + noise * (x // 16 % 2)[:, :, None], 0, 255).astype(np.uint8)


def saved(image, **options):
    """JPEG bytes of pixels or of a Pillow image."""
    file = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(file, "JPEG", **options)
    return file.getvalue()


@functools.cache
def example(kind, height=20, width=40, seed=0):
    if kind in PACKED:
        return zlib.decompress(base64.b85decode(PACKED[kind]))
    pixels = picture(height, width, seed)
    if kind == "grey":
        return saved(pixels[:, :, 0])
    if kind == "progressive":
        return saved(pixels, progressive=True)
    if kind == "restarts":
        return saved(pixels, restart_marker_blocks=3)
    return saved(pixels, subsampling=SUBSAMPLINGS[kind], quality=90)


@functools.cache
def whole(data, factor=1):
    """Pillow's pixels of the whole image."""
    with Image.open(io.BytesIO(data)) as image:
        if factor > 1:
            image.draft(None, (image.width // factor, image.height // factor))
        pixels = np.asarray(image)
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


@pytest.fixture(params=["libjpeg-turbo", "Pillow"])
def decoder(request, monkeypatch):
    """Both ways to decode; where there is no library, both are Pillow."""
    if request.param == "Pillow":
        monkeypatch.setattr(jpeg, "library", lambda: None)
    return request.param


def check(data, top, left, height, width, factor=1):
    header = jpeg.scan(data)
    got = jpeg.cut(data, header, top, left, height, width, factor)
    want = whole(data, factor)[top // factor :, left // factor :][: height // factor, : width // factor]
    assert got.dtype == np.uint8
    assert got.shape == want.shape == (height // factor, width // factor, header.channels)
    assert np.array_equal(got, want), (header, top, left, height, width, factor)


def test_the_library_is_here_on_x86():
    """Else the quick way would have vanished, and nothing but time would tell."""
    if platform.machine() in ("x86_64", "AMD64"):
        assert jpeg.library() is not None


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_header(kind, size):
    data = example(kind, *size)
    block = {"4:4:4": 8, "grey": 8}.get(kind, 16)
    assert jpeg.scan(data) == (*size, 1 if kind == "grey" else 3, block)


# --------------------------------------------------------------------------- pixels


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_whole_edges_and_single_pixels(decoder, kind, size):
    data, (height, width) = example(kind, *size), size
    check(data, 0, 0, height, width)
    for top in {0, height // 2, height - 1}:
        for left in {0, width // 2, width - 1}:
            check(data, top, left, 1, 1)
            check(data, top, left, height - top, width - left)
    check(data, 0, width - 1, height, 1)
    check(data, height - 1, 0, 1, width)


@given(st.data(), st.sampled_from((*KINDS, "4:1:1", "4:4:0", "4:4:1")), st.sampled_from(SIZES))
@settings(max_examples=300, deadline=None)
def test_any_box(draw, kind, size):
    data = example(kind, *size)
    header = jpeg.scan(data)
    top, left = draw.draw(st.integers(0, header.height - 1)), draw.draw(st.integers(0, header.width - 1))
    height, width = draw.draw(st.integers(1, header.height - top)), draw.draw(st.integers(1, header.width - left))
    check(data, top, left, height, width)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jpeg, "library", lambda: None)
        check(data, top, left, height, width)


@given(st.data(), st.sampled_from((2, 4, 8)), st.sampled_from((*KINDS, "4:4:0")), st.sampled_from(SIZES[1:]))
@settings(max_examples=300, deadline=None)
def test_any_box_made_smaller(draw, factor, kind, size):
    data = example(kind, *size)
    header = jpeg.scan(data)
    if min(header.height, header.width) < factor:
        return
    top = factor * draw.draw(st.integers(0, header.height // factor - 1))
    left = factor * draw.draw(st.integers(0, header.width // factor - 1))
    height = draw.draw(st.integers(factor, header.height - top))
    width = draw.draw(st.integers(factor, header.width - left))
    check(data, top, left, height, width, factor)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jpeg, "library", lambda: None)
        check(data, top, left, height, width, factor)


@given(
    st.integers(1, 80),
    st.integers(1, 80),
    st.sampled_from(KINDS),
    st.integers(1, 100),
    st.integers(0, 9),
    st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_any_size_and_quality(height, width, kind, quality, seed, optimize):
    pixels = picture(height, width, seed)
    pixels = pixels[:, :, 0] if kind == "grey" else pixels
    data = saved(
        pixels, quality=quality, optimize=optimize, progressive=kind == "progressive",
        subsampling=SUBSAMPLINGS.get(kind, 2),
    )  # fmt: skip
    check(data, 0, 0, height, width)
    check(data, height // 3, width // 3, height - height // 3, width - width // 3)


def test_a_cut_is_the_threads_own():
    """Eight threads, each with images of its own, at once; within a thread the next cut writes over the last."""
    files = [[example(kind, 64 + 8 * t, 96 - 8 * t, t) for kind in KINDS] for t in range(8)]

    def work(t):
        rng = np.random.default_rng(t)
        for _ in range(60):
            data = files[t][rng.integers(len(KINDS))]
            header = jpeg.scan(data)
            top, left = int(rng.integers(header.height - 8)), int(rng.integers(header.width - 8))
            check(data, top, left, int(rng.integers(8, header.height - top + 1)), 8)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))


def without_tables(data):
    """As a frame of a motion JPEG: it relies on the Huffman tables of the standard's annex K."""
    while (at := data.find(b"\xff\xc4", 0, data.index(b"\xff\xda"))) >= 0:
        data = data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4]) :]
    return data


def test_no_image_sees_what_came_before_it(decoder):
    """A decompressor that is used again keeps tables, and refuses everything after an error."""
    plain = example("4:2:0", 64, 64)
    bare, own = without_tables(plain), saved(picture(64, 64, 1), optimize=True)
    assert b"\xff\xc4" not in bare
    start = plain.index(b"\xff\xc4")
    broken = plain[: start + 5] + b"\xff" * 16 + plain[start + 21 :]
    for data in (plain, bare, own, bare, plain, own):
        with pytest.raises((ValueError, OSError)):
            jpeg.cut(broken, jpeg.scan(broken), 0, 0, 64, 64)
        check(data, 0, 0, 64, 64)
        check(data, 8, 24, 31, 33)
        check(data, 8, 24, 31, 33, 2)


# --------------------------------------------------------------------------- what a crop asks for


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("box", "size", "factor"),
    [
        ((5, 7, 100, 100), 100, 1),
        ((5, 7, 100, 99), 50, 1),
        ((5, 7, 101, 100), 50, 2),
        ((5, 7, 300, 210), 50, 4),
        ((5, 7, 330, 450), 40, 8),
        ((5, 7, 330, 450), 1, 8),
    ],
)
def test_a_large_box_is_decoded_smaller(decoder, kind, box, size, factor):
    data, (top, left, height, width) = example(kind, 375, 500), box
    encoded = open_image(data, 1 if kind == "grey" else 3, "here")
    assert isinstance(encoded, Encoded)
    part, _ = encoded.cut(*box, (size, size))
    want = whole(data, factor)[top // factor :, left // factor :][: height // factor, : width // factor]
    assert np.array_equal(part, want)


@pytest.mark.parametrize("kind", [*KINDS, *PACKED])
def test_the_whole_box_is_what_decode_gives(decoder, kind):
    data = example(kind)
    channels = 1 if kind == "grey" else 3
    opened = open_image(data, channels, "here")
    if kind == "arithmetic":
        assert isinstance(opened, np.ndarray)
    else:
        opened, _ = opened.cut(0, 0, *opened.shape[:2], opened.shape[:2])
    assert np.array_equal(opened, decode(data, channels, "here"))


def test_another_number_of_channels_is_decoded_whole():
    for kind, channels in (("grey", 3), ("4:2:0", 1)):
        opened = open_image(example(kind), channels, "here")
        assert np.array_equal(opened, decode(example(kind), channels, "here"))


def test_a_file_that_fails_after_its_header_names_the_place(decoder):
    data = example("4:2:0", 64, 64)
    start = data.index(b"\xff\xc4")  # the first Huffman table claims more codes than there can be
    data = data[: start + 5] + b"\xff" * 16 + data[start + 21 :]
    encoded = open_image(data, 3, "a/b.jpg")
    assert isinstance(encoded, Encoded)
    with pytest.raises(Unreadable, match=r"^a/b\.jpg: cannot decode"):
        encoded.cut(0, 0, 64, 64, (64, 64))


# --------------------------------------------------------------------------- what scan refuses


def segment(marker, body):
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def inserted(data, part, before=None):
    """The file with a segment after its start, or before a marker."""
    at = 2 if before is None else data.index(bytes((0xFF, before)))
    return data[:at] + part + data[at:]


def exif(orientation, order="<", kind=3):
    value = struct.pack(order + "HH", orientation, 0)
    header = b"II*\0" if order == "<" else b"MM\0*"
    return b"Exif\0\0" + header + struct.pack(order + "IHHHI", 8, 1, 0x0112, kind, 1) + value + bytes(4)


XMP = b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
GOOD = example("4:2:0")
FRAME = GOOD.index(b"\xff\xc0")
REFUSED = {
    "empty": b"",
    "three bytes": GOOD[:3],
    "text": b"this is text",
    "PNG": b"\x89PNG\r\n\x1a\n" + GOOD,
    "no end marker": GOOD[:-2],
    "half": GOOD[: len(GOOD) // 2],
    "trailing bytes": GOOD + b"\0",
    "arithmetic": example("arithmetic"),
    "12 bits": GOOD[: FRAME + 4] + b"\x0c" + GOOD[FRAME + 5 :],
    "lossless": GOOD[: FRAME + 1] + b"\xc3" + GOOD[FRAME + 2 :],
    "hierarchical": GOOD[: FRAME + 1] + b"\xc5" + GOOD[FRAME + 2 :],
    "height of 0": GOOD[: FRAME + 5] + b"\0\0" + GOOD[FRAME + 7 :],
    "width of 0": GOOD[: FRAME + 7] + b"\0\0" + GOOD[FRAME + 9 :],
    "65000 x 65000": GOOD[: FRAME + 5] + struct.pack(">HH", 65000, 65000) + GOOD[FRAME + 9 :],
    "two components": GOOD[: FRAME + 9] + b"\x02" + GOOD[FRAME + 10 :],
    "CMYK": saved(Image.new("CMYK", (16, 16), (9, 99, 199, 50))),
    "two frames": inserted(GOOD, GOOD[FRAME : FRAME + 19], 0xDA),
    "RGB": saved(picture(16, 16), keep_rgb=True),
    "Adobe RGB": inserted(GOOD, segment(0xEE, b"Adobe\0\x64\0\0\0\0\0")),
    "Adobe RGB after the frame": inserted(GOOD, segment(0xEE, b"Adobe\0\x64\0\0\0\0\0"), 0xDA),
    "turned": inserted(GOOD, segment(0xE1, exif(6))),
    "turned, big-endian": inserted(GOOD, segment(0xE1, exif(6, ">"))),
    "turned after the frame": inserted(GOOD, segment(0xE1, exif(6)), 0xDA),
    "turned by XMP": inserted(GOOD, segment(0xE1, XMP)),
    "orientation of another type": inserted(GOOD, segment(0xE1, exif(1, kind=4))),
    "EXIF of no byte order": inserted(GOOD, segment(0xE1, b"Exif\0\0XX*\0\x08\0\0\0\0\0")),
    "EXIF of an unusual version": inserted(GOOD, segment(0xE1, exif(6).replace(b"II*\0", b"II\0*"))),
    "EXIF cut off": inserted(GOOD, segment(0xE1, exif(1)[:-8])),
    "no scan": GOOD[: GOOD.index(b"\xff\xda")] + b"\xff\xd9",
    "no frame": GOOD[:FRAME] + GOOD[FRAME + 19 :],
    "a segment of length 1": inserted(GOOD, b"\xff\xe3\0\x01"),
    "a segment beyond the end": inserted(GOOD, b"\xff\xe3\xff\xff"),
    "a marker without a length": inserted(GOOD, b"\xff\xd0"),
    "a second start": inserted(GOOD, b"\xff\xd8"),
    "bytes between segments": inserted(GOOD, b"\0\0"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_scan_refuses_what_must_be_seen_whole(name):
    assert jpeg.scan(REFUSED[name]) is None


@pytest.mark.parametrize(
    "part",
    [
        segment(0xE1, exif(1)),
        segment(0xE1, exif(1, ">")),
        segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta/>"),
        segment(0xE2, b"ICC_PROFILE\0\x01\x01" + bytes(500)),
        segment(0xEE, b"Adobe\0\x64\0\0\0\0\x01"),
        segment(0xFE, b"a comment \xff\xd9\xff\xc0 with markers in it"),
        b"\xff\xff\xff" + segment(0xFE, b"after fill bytes"),
    ],
)
@pytest.mark.parametrize("before", [None, 0xDA])
def test_scan_takes_what_changes_no_pixel(decoder, part, before):
    data = inserted(GOOD, part, before)
    assert jpeg.scan(data) == jpeg.scan(GOOD)
    check(data, 3, 5, 10, 20)


@given(st.binary(max_size=200), st.integers(0, len(GOOD)))
@settings(max_examples=300, deadline=None)
def test_scan_never_raises(tail, at):
    for data in (tail, b"\xff\xd8\xff" + tail + b"\xff\xd9", GOOD[:at] + tail + b"\xff\xd9"):
        jpeg.scan(data)
