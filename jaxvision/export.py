"""python -m jaxvision.export: write a trained network as a file that runs elsewhere, and prove that it is the same."""

from __future__ import annotations

from typing import Any

from jaxvision import cli
from jaxvision.deploy.exported import BOUND, FORMATS, INPUTS
from jaxvision.deploy.torch_names import LIBRARIES
from jaxvision.errors import UserError, nearest
from jaxvision.runtime import paths


def export(argv: list[str]) -> dict[str, Any]:
    parser = cli.Parser(
        "jaxvision.export",
        "Write a trained network as a file that runs without jaxvision: a program that takes uint8 pixels (StableHLO\n"
        "for JAX, ONNX for onnxruntime and others; resizing, cropping and normalisation are within; LiteRT, which was\n"
        "TensorFlow Lite, for phones: one image at a time, resized and cropped already), or weights for\n"
        "timm and torchvision (safetensors). Averaged weights where the training kept some. The same images then go\n"
        "through the file and the trained network: PATH.json beside it certifies what came. Nothing is overwritten.",
        [
            "python -m jaxvision.export --from runs/a --format onnx --out exported/pets.onnx",
            "python -m jaxvision.export --from runs/a --format onnx --int8 folder:/pets/train --out exported/int8.onnx",
            "python -m jaxvision.export --from runs/a --checkpoint best --format stablehlo --out exported/a.stablehlo",
            "python -m jaxvision.export --from runs/a --format safetensors --out exported/model.safetensors",
            "python -m jaxvision.export --verify exported/pets.onnx        # where it is deployed",
        ],
    )
    parser.add_from(required=False)
    parser.add_argument("--format", metavar="F", help=f"{', '.join(FORMATS)}; default: what PATH ends in")
    parser.add_argument("--out", metavar="PATH", help=f"the file to write, NAME{', NAME'.join(FORMATS.values())}")
    parser.add_argument(
        "--pixels",
        metavar="P",
        help="stablehlo, onnx: what the file takes: images of any size, as decoded (default), "
        "or crops that are resized and cut out already",
    )
    parser.add_argument("--int8", metavar="URI", help="onnx: quantise to int8, calibrated with images from there")
    parser.add_argument("--calibration", type=int, default=200, metavar="N", help="how many; default %(default)d")
    parser.add_argument("--names", metavar="LIBRARY", help="safetensors: timm or torchvision; default: who has it")
    parser.add_argument("--data", metavar="URI", help="images for the certificate; default: the run's own evaluation")
    parser.add_argument("--images", type=int, metavar="N", help="how many of them; default 200, or as many as then")
    parser.add_argument(
        "--agreement",
        type=float,
        metavar="SHARE",
        help="fail if fewer images are told the same; default "
        + ", ".join(f"{share:g} for {name}" for name, share in BOUND.items()),
    )
    parser.add_argument("--verify", metavar="FILE", help="repeat the certificate's checks of an exported file")
    arguments, _ = parser.parse(argv)
    parser.need_positive(arguments, "images", "calibration")
    _check(arguments)
    cli.ticker.start(arguments, "importing JAX, reading the network, compiling")
    from jaxvision.deploy import exporting, verifying

    say, show = cli.printer(arguments), cli.progress(arguments)
    if arguments.verify:
        return verifying.verify(arguments.verify, arguments.data, arguments.images, arguments.agreement, say, show)
    return exporting.run(arguments, say, show)


def _check(arguments: Any) -> None:
    """The flags, and that the place is free, before anything slow."""
    a = arguments
    if a.agreement is not None and not 0 <= a.agreement <= 1:
        raise UserError(f"--agreement is {a.agreement}: it is a share, in 0..1")
    if a.verify:
        for flag in ("source", "format", "out", "pixels", "int8", "names", "checkpoint"):
            if getattr(a, flag):
                flag = flag.replace("source", "from")
                raise UserError(f"--verify asks about a file that is there: leave out --{flag}")
        return
    if not a.source or not a.out:
        absent = " and ".join(flag for flag, value in (("--from", a.source), ("--out", a.out)) if not value)
        raise UserError(f"missing: {absent}: --from says what to export, --out where to (or --verify FILE)")
    a.format = a.format or next((f for f, ending in FORMATS.items() if a.out.endswith(ending)), None)
    if a.format is None:
        raise UserError(f"--out {a.out!r} ends in none of {', '.join(FORMATS.values())}: say --format, or name it so")
    if a.format not in FORMATS:
        raise UserError(f"unknown --format {a.format!r}: {nearest(a.format, tuple(FORMATS))}")
    if a.names is not None and a.names not in LIBRARIES:
        raise UserError(f"unknown --names {a.names!r}: {nearest(a.names, LIBRARIES)}")
    if a.pixels is not None and a.pixels not in INPUTS:
        raise UserError(f"unknown --pixels {a.pixels!r}: {nearest(a.pixels, tuple(INPUTS))}")
    for flag, value, formats in (
        ("--names", a.names, ("safetensors",)),
        ("--pixels", a.pixels, ("stablehlo", "onnx")),
        ("--int8", a.int8, ("onnx",)),
    ):
        if value and a.format not in formats:
            raise UserError(f"{flag} goes with --format {' or '.join(formats)}, this is {a.format}")
    if paths.is_bucket(a.out) or not a.out.endswith(FORMATS[a.format]):
        raise UserError(f"--out {a.out!r} must be a path on this machine that ends in {FORMATS[a.format]}")


if __name__ == "__main__":
    cli.main(export)
