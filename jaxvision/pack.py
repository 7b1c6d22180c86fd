"""python -m jaxvision.pack: put a data set into a few large files, read faster than a million small ones."""

from __future__ import annotations

import shlex
import sys
from typing import Any

from jaxvision import cli
from jaxvision.data.decode import MAX_PIXELS
from jaxvision.errors import Interrupted, UserError

SHARD = 10_000  # samples in a shard, at most, unless --shards is given


def pack(argv: list[str]) -> dict[str, Any]:
    parser = cli.Parser(
        "jaxvision.pack",
        "Pack a data set into a folder of a few large files, to be read as records:DIR.\n"
        "The files' bytes are kept as they are unless --longest or --quality is given.\n"
        "The same command resumes after an interruption.",
        [
            "python -m jaxvision.pack --from folder:/data/pets/train --out /data/packed/pets-train",
            "python -m jaxvision.pack --from folder:/data/photos --out packed --longest 512 --quality 90",
            "python -m jaxvision.pack --from digits:train --out /tmp/digits --shards 4 --json",
        ],
    )
    parser.add_argument("--from", dest="source", required=True, metavar="URI", help="a data source, e.g. folder:PATH")
    parser.add_argument("--out", required=True, metavar="DIR", help="a new folder, or one that this command began")
    parser.add_argument(
        "--shards", type=int, metavar="N", help=f"number of files; default: {SHARD:,} samples in each, at most"
    )
    parser.add_argument(
        "--longest",
        type=int,
        metavar="SIDE",
        help="images with a longer side are resized to it (antialiased, Lanczos) and stored as upright JPEG; "
        "the others are kept",
    )
    parser.add_argument(
        "--quality",
        type=int,
        metavar="Q",
        help="of JPEG, 1 to 100; default 90. Without --longest: store all images as JPEG",
    )
    parser.add_max_pixels(MAX_PIXELS)
    parser.add_argument("--threads", type=int, metavar="N", help="that read and encode; default: one a processor")
    parser.add_argument(
        "--on-error",
        choices=("stop", "skip"),
        default="stop",
        help="an unreadable image ends the packing (default), or is left out, counted and listed in info.json",
    )
    arguments, _ = parser.parse(argv)
    parser.need_positive(arguments, "longest", "shards", "threads")
    if arguments.quality is not None and not 1 <= arguments.quality <= 100:
        raise UserError(f"--quality is {arguments.quality}: it must be 1 to 100")

    from jaxvision.data import packing

    try:
        return packing.pack(
            arguments.source,
            arguments.out,
            shards=arguments.shards,
            samples=SHARD,
            encoder=packing.Encoder(arguments.longest, arguments.quality, arguments.max_pixels),
            threads=arguments.threads,
            skip=arguments.on_error == "skip",
            say=cli.printer(arguments),
            live=not arguments.json and sys.stderr.isatty(),
        )
    except Interrupted as error:
        raise Interrupted(f"{error}. To resume: {shlex.join(['python', '-m', 'jaxvision.pack', *argv])}") from error


if __name__ == "__main__":
    cli.main(pack, unheard=True)
