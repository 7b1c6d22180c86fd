"""python -m jaxvision.predict: tell class names, tags or values of images, folders and videos."""

from __future__ import annotations

from collections import Counter
from typing import Any

from jaxvision import cli
from jaxvision.data.decode import MAX_PIXELS
from jaxvision.errors import UserError
from jaxvision.runtime import paths


def predict(argv: list[str]) -> dict[str, Any]:
    parser = cli.Parser(
        "jaxvision.predict",
        "Name what images show. IMAGE is a file, a folder (all images in it, at any depth), a pattern in quotes, a\n"
        'video (needs PyAV: pip install "jaxvision[video]"), or - for standard input: an encoded image, or names of\n'
        "files, one a line or as find -print0 gives them. What cannot be read is reported and passed over; the exit\n"
        "code is 0 only if all was read.",
        [
            "python -m jaxvision.predict --from runs/a photo.jpg other.png",
            "python -m jaxvision.predict --from runs/a --checkpoint best --top 3 --out answers.csv /my/photos",
            "python -m jaxvision.predict --from exported/pets.onnx 'photos/**/*.jpg'",
            "python -m jaxvision.predict --from runs/a --every 2 clip.mp4      # a frame every 2 seconds",
            "find . -name '*.jpg' -print0 | python -m jaxvision.predict --from runs/a --out answers.jsonl -",
        ],
    )
    parser.add_from(exported=True)
    parser.add_argument("--top", type=int, metavar="K", help="classes: how many for each image (1)")
    parser.add_argument("--threshold", type=float, metavar="P", help="tags: those at or above it (0.5)")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="images at a time")
    parser.add_argument("--every", type=float, default=1.0, metavar="S", help="videos: seconds between frames (1)")
    parser.add_max_pixels(MAX_PIXELS)
    parser.add_argument(
        "--out", metavar="FILE", help="the answers into FILE.jsonl, a JSON object a line, or FILE.csv, and not here"
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    arguments, _ = parser.parse(argv)
    parser.need_positive(arguments, "top", "batch_size")
    _check(arguments)

    from jaxvision.data import inputs, video
    from jaxvision.data.sources.common import counted

    say, left_out = cli.printer(arguments), Counter[str]()
    items = [item for name in arguments.images for item in inputs.find(name, left_out)]
    if any(video.is_video(image) for _, image in items):
        video.require()  # before anything slow
    cli.ticker.start(arguments, "importing JAX, reading the network, compiling")

    from jaxvision import targets
    from jaxvision.deploy import answers, inference

    predictor = inference.load(arguments.source, arguments.checkpoint, max_pixels=arguments.max_pixels, say=say)
    options = {name: value for name in ("top", "threshold") if (value := getattr(arguments, name)) is not None}
    for name in options.keys() - predictor.target.options.keys():
        kinds = ", ".join(target.name for target in targets.every() if name in target.options)
        told = f"{arguments.source} tells {predictor.kind}"
        raise UserError(f"--{name} is for labels of kind {kinds}, {told}: remove it")
    result = answers.answer(
        predictor,
        items,
        options={**predictor.target.options, **options},
        every=arguments.every,
        max_pixels=arguments.max_pixels,
        batch_size=arguments.batch_size,
        out=arguments.out,
        say=say,
        show=cli.progress(arguments),
    )
    if left_out:
        say(f"the folders hold other files, which are left out: {counted(left_out)}")
    if arguments.out:
        say(f"answers: {result['out']}")
    result["left_out"] = dict(left_out)
    if failed := result["failed"]:
        among = result["images"] + len(failed)
        refusal = UserError(f"{len(failed)} of {among} images could not be read: " + "; ".join(failed[:5]))
        refusal.result = result
        raise refusal
    return result


def _check(arguments: Any) -> None:
    if arguments.threshold is not None and not 0 <= arguments.threshold <= 1:
        raise UserError(f"--threshold is {arguments.threshold}: it is a probability, in 0..1")
    if not 0 <= arguments.every < float("inf"):
        raise UserError(f"--every is {arguments.every}: it is a number of seconds, 0 for every frame")
    if arguments.out and not arguments.out.endswith((".jsonl", ".csv")):
        raise UserError(f"--out {arguments.out!r} must end in .jsonl or .csv")
    if arguments.out and not paths.is_bucket(arguments.out):
        out = paths.path(arguments.out)
        if out.is_dir():
            raise UserError(f"--out {arguments.out!r} is a folder: name a file in it, as {out / 'answers.csv'}")
        paths.require_writable(out.parent)


if __name__ == "__main__":
    cli.main(predict)
