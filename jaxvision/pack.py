"""python -m jaxvision.pack: a data set into a few large files, which a disk reads faster than a million small ones."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import datetime
import hashlib
import io
import itertools
import json
import os
import pathlib
import shlex
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent import futures
from typing import Any, TypeVar

import jaxvision
from jaxvision import cli
from jaxvision.data.decode import MAX_PIXELS, decode
from jaxvision.data.sources import Source, open_source
from jaxvision.errors import Damaged, Interrupted, Unreadable, UserError
from jaxvision.runtime import machine, paths
from jaxvision.runtime.stop import Stop

T = TypeVar("T")
R = TypeVar("R")

SHARD = 10_000  # samples in a shard, at most, unless --shards is given
PART = {"count": int, "bytes": int, "sha256": str, "digest": str, "skipped": list}  # what is said of a shard
_NAMES = {  # of the keys of info.json that two runs must share, for messages
    "source.uri": "--from",
    "source.count": "the number of samples",
    "source.labels_sha256": "labels",
    "options.shards": "--shards",
    "options.longest": "--longest",
    "options.quality": "--quality",
}


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
    threads = arguments.threads if arguments.threads is not None else machine.cores()
    for name, value in (("--longest", arguments.longest), ("--shards", arguments.shards), ("--threads", threads)):
        if value is not None and value < 1:
            raise UserError(f"{name} is {value}: it must be at least 1")
    if arguments.quality is not None and not 1 <= arguments.quality <= 100:
        raise UserError(f"--quality is {arguments.quality}: it must be 1 to 100")

    from jaxvision.data import survey
    from jaxvision.data.contract import InputContract
    from jaxvision.data.sources.common import notes

    began = time.perf_counter()
    paths.require_folder(arguments.out, "--out")
    source = open_source(arguments.source)
    if len(source) == 0:
        raise UserError(f"{source.uri} holds no samples: check the path and the split")
    shards = arguments.shards or -(-len(source) // SHARD)
    if shards > len(source):
        raise UserError(f"--shards is {shards}, but {source.uri} holds {len(source)} samples: take fewer")
    encoder, say = Encoder(arguments.longest, arguments.quality, arguments.max_pixels), cli.sayer(arguments)
    for line in notes([source]):
        say(line)
    if hasattr(source, "groups"):
        say(f"{source.uri} has groups, and records keep none: pack the data of an evaluation apart, by split= or part=")
    for line in () if encoder.keeps_bytes else survey.levels_told(source.uri, survey.encoded(source), InputContract()):
        say(f"{line}; --longest and --quality store 8 bits and no alpha for good: without them files stay as they are")
    packing = Packing(
        began=began,
        source=source,
        out=paths.on_disk(arguments.out, "--out"),
        shards=shards,
        encoder=encoder,
        threads=threads,
        skip=arguments.on_error == "skip",
        say=say,
        live=not arguments.json and sys.stderr.isatty(),
    )
    busy = f"another process is packing into {packing.out}: wait for it, or name another --out"
    try:
        with Stop() as packing.stop, paths.lock(packing.out, busy):
            return packing.run()
    except Interrupted as error:
        raise Interrupted(f"{error}. To resume: {shlex.join(['python', '-m', 'jaxvision.pack', *argv])}") from error
    except OSError as error:  # what cannot be read of the source is no OSError any more
        raise _unwritable(error.filename or packing.out, error.strerror or str(error)) from error


def content_digest(source: Source) -> str:
    """SHA-256 over all samples in order, each as `records.sample_digest` gives it: hexadecimal.

    A data set that was packed with its bytes kept has the digest of its source.
    """
    from jaxvision.data.sources import records

    total = hashlib.sha256()
    for i in range(len(source)):
        total.update(records.sample_digest(source[i], source.kind))
    return total.hexdigest()


@dataclasses.dataclass(frozen=True)
class Encoder:
    """What becomes of an image. `longest`, `quality` and `max_pixels` as the flags; None: not given."""

    longest: int | None
    quality: int | None
    max_pixels: int = MAX_PIXELS

    @property
    def keeps_bytes(self) -> bool:
        return self.longest is None and self.quality is None

    def __call__(self, image: Any, where: str) -> Any:
        """The image as it is stored: bytes, or uint8 [H, W, 1 or 3]. Raises UserError, naming `where`.

        Every image is decoded, so that what cannot be read is found now and not by the training.
        """
        import numpy as np
        from PIL import Image

        grey = isinstance(image, np.ndarray) and (image.ndim == 2 or image.shape[2:] == (1,))
        pixels = self._decoded(image, 1 if grey else 3, where)
        height, width = pixels.shape[:2]
        if self.keeps_bytes or (self.longest is not None and max(height, width) <= self.longest):
            return pixels if isinstance(image, np.ndarray) else image
        picture = Image.fromarray(pixels.squeeze(2) if grey else pixels)
        if self.longest is not None:
            scale = self.longest / max(height, width)
            size = (max(1, round(width * scale)), max(1, round(height * scale)))
            picture = picture.resize(size, Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        try:
            picture.save(buffer, "JPEG", quality=self.quality or 90)
        except OSError as error:
            raise UserError(f"{where}: cannot be stored as JPEG ({error}): give --longest 65500 or less") from error
        return buffer.getvalue()

    def _decoded(self, image: Any, channels: int, where: str) -> Any:
        try:
            return decode(image, channels, where, max_pixels=self.max_pixels)
        except Unreadable:
            if self.keeps_bytes:  # grey of 32 bits is good where a range is known, which whoever reads it will set
                with contextlib.suppress(Unreadable):
                    return decode(image, channels, where, range=(0.0, 1.0), max_pixels=self.max_pixels)
            raise


@dataclasses.dataclass
class Packing:
    """One run of the command. Files of `out`, in the order in which they appear:

    packing.json: what is packed and how; a second run compares it.
    .shard-...partial: the shard being written.
    shard-....json, then shard-....array_record: a shard, whole and on the disk.
    labels.npy, index.npy, info.json: all shards are there and were read again. packing.json and shard-....json go.
    """

    began: float
    source: Source
    out: pathlib.Path
    shards: int
    encoder: Encoder
    threads: int
    skip: bool
    say: Callable[[str], None]
    live: bool
    stop: Stop = dataclasses.field(default_factory=Stop)
    written: int = 0  # in this run

    def run(self) -> dict[str, Any]:
        import numpy as np

        from jaxvision.data.sources import records
        from jaxvision.data.sources.common import SCALAR

        self.records = records
        scalar = self.source.kind in SCALAR
        self.labels = np.ascontiguousarray(self.source.labels, np.int32 if scalar else np.float32)
        self.names = [records.shard_name(k, self.shards) for k in range(self.shards)]
        ends = [k * len(self.source) // self.shards for k in range(self.shards + 1)]
        self.parts = [range(a, b) for a, b in itertools.pairwise(ends)]  # the samples of each shard
        plan = self._plan()
        if (self.out / records.INFO).exists():
            return self._finished(plan)
        self._begin(plan)
        whole = {}
        for k in range(self.shards):
            self._check_asked()
            part = self._whole(k)
            if part is not None:
                whole[k] = part
        if whole:
            self.say(f"resuming: {len(whole)} of {self.shards} shards are whole")
        missing = [k for k in range(self.shards) if k not in whole]
        with self._progress("packing", sum(len(self.parts[k]) for k in missing)) as step:
            samples = _ahead(self._encode, itertools.chain(*(self.parts[k] for k in missing)), self.threads)
            with contextlib.closing(samples):
                for k in missing:
                    whole[k] = self._write(k, itertools.islice(samples, len(self.parts[k])), step)
        info = self._info(plan, [whole[k] for k in range(self.shards)])
        # sample k of the records is sample kept[k] of the source
        kept = np.delete(np.arange(len(self.source)), [s["sample"] for s in info["skipped"]])
        if not len(kept):
            raise UserError(f"none of the {len(self.source)} images of {self.source.uri} can be read: check the source")
        info["labels"] = self._save(records.LABELS, self.labels[kept])
        info["digest"], index = self._verify(info, kept)
        info["index"] = self._save(records.INDEX, np.array(index, np.int64))
        info["date"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        info["checksum"] = records.checksum(info)
        _write_whole(self.out / records.INFO, _json(info))
        self._tidy()
        return self._report(info)

    # ----------------------------------------------------------------------- before

    def _plan(self) -> dict[str, Any]:
        """What must be the same when a second run goes on."""
        plan = {
            "version": self.records.VERSION,
            "source": {
                "uri": self.source.uri,
                "count": len(self.source),
                "labels_sha256": hashlib.sha256(self.labels.data).hexdigest(),
            },
            "options": {
                "shards": self.shards,
                "longest": self.encoder.longest,
                "quality": self.encoder.quality,
            },
            "kind": self.source.kind,
            "classes": list(self.source.classes),
        }
        return json.loads(_json(plan))

    def _compare(self, then: dict[str, Any], plan: dict[str, Any]) -> None:
        found = _differences({k: then.get(k) for k in plan}, plan)
        if found:
            raise UserError(
                f"{self.out} was packed otherwise: {'; '.join(found)}. Name another --out, or give the same arguments"
            )

    def _begin(self, plan: dict[str, Any]) -> None:
        """Makes packing.json, or compares it, and removes what a killed run left."""
        path = self.out / self.records.PLAN
        if path.exists():
            try:
                then = paths.read_json(path)
            except Damaged as error:
                raise Damaged(f"{error}: name another --out, or remove {self.out} and pack anew") from error
            self._compare(then, plan)
        else:
            foreign = sorted(p.name for p in self.out.iterdir() if not p.name.startswith("."))
            if foreign:
                (self.out / ".lock").unlink()
                raise UserError(f"{self.out} holds other files ({foreign[0]}): name a new or empty folder for --out")
            _write_whole(path, _json(plan))
        for left in (*self.out.glob(".shard-*.partial"), *self.out.glob(".*.tmp")):
            left.unlink()

    def _whole(self, k: int) -> dict[str, Any] | None:
        """What shard k holds, as its file of JSON says; None if it is absent or must be written again."""
        path = self.out / self.names[k]
        try:
            part = paths.read_json(path.with_suffix(".json"), PART)
        except FileNotFoundError:
            return None
        except Damaged as error:
            self.say(f"{error}: {path.name} is written again")
            path.unlink(missing_ok=True)
            return None
        if not path.exists():
            return None
        if path.stat().st_size != part["bytes"] or paths.digest(path) != part["sha256"]:
            self.say(f"{path} is damaged: it is written again")
            path.unlink()
            return None
        # with --on-error stop, what an earlier run skipped has its say
        return part if self.skip or not part["skipped"] else None

    def _finished(self, plan: dict[str, Any]) -> dict[str, Any]:
        """The same command again, after all was done."""
        info = self.records.Records(str(self.out)).info
        self._compare(info, plan)
        self.say(f"{self.out} is packed already")
        self._tidy()
        return self._report(info)

    # ----------------------------------------------------------------------- shards

    def _encode(self, i: int) -> tuple[int, bytes, bytes, str]:
        """(i, record, digest, "") of sample i, or (i, b"", b"", error)."""
        try:
            sample = self.source[i]
            sample = {**sample, "image": self.encoder(sample["image"], self.source.where(i))}
        except UserError as error:
            return i, b"", b"", str(error)
        return i, self.records.record(sample, self.source.kind), self._digest(sample), ""

    def _digest(self, sample: dict[str, Any]) -> bytes:
        return self.records.sample_digest(sample, self.source.kind)

    def _write(
        self, k: int, samples: Iterable[tuple[int, bytes, bytes, str]], step: Callable[[], None]
    ) -> dict[str, Any]:
        """Shard k, under its final name only when whole and on the disk. Returns what its file of JSON says."""
        from array_record.python import array_record_module

        path = self.out / self.names[k]
        partial = self.out / f".{path.name}.{os.getpid()}.partial"
        digest, count, skipped = hashlib.sha256(), 0, []
        try:
            # uncompressed: JPEG and PNG get no smaller, and zstd takes five times as long to write
            writer = array_record_module.ArrayRecordWriter(os.fsencode(partial), "group_size:1,uncompressed")
            for i, record, piece, error in samples:
                step()
                if error and not self.skip:
                    raise UserError(f"{error} (or give --on-error skip)")
                if error:
                    skipped.append({"sample": i, "error": error})
                    continue
                with _writing(path):
                    writer.write(record)
                digest.update(piece)
                count += 1
            with _writing(path):
                writer.close()
                self.records.open_shard(str(partial), count).close()
                with open(partial, "rb") as file:
                    os.fsync(file.fileno())
            part = {
                "count": count,
                "bytes": partial.stat().st_size,
                "sha256": paths.digest(partial),
                "digest": digest.hexdigest(),
                "skipped": skipped,
            }
            _write_whole(path.with_suffix(".json"), _json(part))  # first: a shard is never without it
            partial.replace(path)
            _sync_folder(self.out)
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
        self.written += count
        return part

    # ----------------------------------------------------------------------- the end

    def _info(self, plan: dict[str, Any], parts: list[dict[str, Any]]) -> dict[str, Any]:
        named = [
            {"name": name, **{key: part[key] for key in ("count", "bytes", "sha256", "digest")}}
            for name, part in zip(self.names, parts, strict=True)
        ]
        return {
            **plan,
            "keeps_bytes": self.encoder.keeps_bytes,
            "count": sum(part["count"] for part in parts),
            "shards": named,
            "skipped": [skipped for part in parts for skipped in part["skipped"]],
            "jaxvision": jaxvision.__version__,
        }

    def _save(self, name: str, array: Any) -> dict[str, Any]:
        """Writes an array; returns what info.json says of the file."""
        import numpy as np

        buffer = io.BytesIO()
        np.save(buffer, array)
        data = buffer.getvalue()
        _write_whole(self.out / name, data)
        return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    def _verify(self, info: dict[str, Any], kept: Any) -> tuple[str, list[int]]:
        """The digest of what a reader of the final files gets, and the `index` of each sample.

        It must be what the source gives when it is read a second time, or, for images that were encoded again,
        what was written. A shard that is not is removed; the same command writes it again.
        """
        packed = self.records.Records(str(self.out), info)

        def read(k: int) -> tuple[int, bytes, bytes]:
            sample = packed[k]
            mine = self._digest(sample)
            theirs = self._digest(self.source[int(kept[k])]) if self.encoder.keeps_bytes else mine
            return sample["index"], mine, theirs

        total = hashlib.sha256()
        index: list[int] = []
        with (
            self._progress("checking", len(packed)) as step,
            contextlib.closing(_ahead(read, range(len(packed)), self.threads)) as pieces,
        ):
            for shard in info["shards"]:
                digest = hashlib.sha256()
                for number, mine, theirs in itertools.islice(pieces, shard["count"]):
                    step()
                    if mine != theirs:
                        k = len(index)
                        self._forget(shard["name"])
                        raise UserError(
                            f"{packed.where(k)} is not what {self.source.where(int(kept[k]))} is now: was the source "
                            "changed meanwhile? The shard was removed, the same command writes it again"
                        )
                    digest.update(mine)
                    total.update(mine)
                    index.append(number)
                if digest.hexdigest() != shard["digest"]:
                    self._forget(shard["name"])
                    raise UserError(
                        f"{self.out / shard['name']} does not hold what was written: is the disk damaged? "
                        "The shard was removed, the same command writes it again"
                    )
        return total.hexdigest(), index

    def _forget(self, name: str) -> None:
        (self.out / name).unlink()
        (self.out / name).with_suffix(".json").unlink()

    def _tidy(self) -> None:
        """Removes what only an unfinished folder needs."""
        for name in self.names:
            (self.out / name).with_suffix(".json").unlink(missing_ok=True)
        (self.out / self.records.PLAN).unlink(missing_ok=True)
        (self.out / ".lock").unlink(missing_ok=True)  # the next process finds info.json

    def _report(self, info: dict[str, Any]) -> dict[str, Any]:
        seconds = time.perf_counter() - self.began
        size = sum(shard["bytes"] for shard in info["shards"])
        skipped = len(info["skipped"])
        if skipped:
            self.say(f"skipped {skipped} unreadable images, the first: {info['skipped'][0]['error']}")
        self.say(
            f"done: {info['count']:,} images, {_size(size)} in {len(info['shards'])} shards, {seconds:.1f} s\n"
            f"use it: --config.data.train={shlex.quote(f'records:{self.out}')}"
        )
        return {
            "out": str(self.out),
            "count": info["count"],
            "skipped": skipped,
            "shards": len(info["shards"]),
            "bytes": size,
            "digest": info["digest"],
            "seconds": round(seconds, 3),
            "images_per_s": round(self.written / seconds, 1),  # of this run, checking included
        }

    def _check_asked(self) -> None:
        if self.stop.asked:
            whole = sum((self.out / name).exists() for name in self.names)
            raise Interrupted(f"{self.stop.asked}: {whole} of {self.shards} shards are whole in {self.out}")

    @contextlib.contextmanager
    def _progress(self, what: str, total: int) -> Iterator[Callable[[], None]]:
        """To be called after each image: moves the display, or says a line every 10 s; stops when asked to."""
        bar = None
        if self.live:
            from tqdm import tqdm

            bar = tqdm(total=total, desc=what, unit="image", dynamic_ncols=True, leave=False)
        began = said = time.perf_counter()
        done = 0

        def step() -> None:
            nonlocal done, said
            done += 1
            self._check_asked()
            if bar is not None:
                bar.update()
            elif (now := time.perf_counter()) - said > 10:
                said = now
                left = (now - began) / done * (total - done)
                self.say(f"{what} {done:,}/{total:,} | {done / (now - began):.0f} images/s | {left:.0f} s left")

        try:
            yield step
        finally:
            if bar is not None:
                bar.close()


def _ahead(function: Callable[[T], R], items: Iterable[T], threads: int) -> Generator[R, None, None]:
    """function(item) of each item, in order, by threads that work ahead, but hold few results."""
    pending: collections.deque[futures.Future[R]] = collections.deque()
    with futures.ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > 4 * threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


@contextlib.contextmanager
def _writing(path: pathlib.Path) -> Iterator[None]:
    """Names the file where a disk is full, or a limit is reached. The writer of shards raises RuntimeError then."""
    try:
        yield
    except (RuntimeError, ValueError, OSError) as error:
        reason = error.strerror or str(error) if isinstance(error, OSError) else str(error)
        raise _unwritable(path, " ".join(reason.split())) from error


def _unwritable(path: str | pathlib.Path, reason: str) -> UserError:
    return UserError(
        f"cannot write {path} ({reason}): make room there or allow it, the same command resumes; or name another --out"
    )


def _differences(then: Any, now: Any, name: str = "") -> list[str]:
    """What differs in two values of JSON, for people."""
    if isinstance(then, dict) and isinstance(now, dict):
        return [d for key in now for d in _differences(then.get(key), now[key], f"{name}.{key}" if name else key)]
    if then == now:
        return []
    name = _NAMES.get(name, name)
    if isinstance(then, list) and isinstance(now, list):
        only = [f"{c!r} only then" for c in then if c not in now] + [f"{c!r} only now" for c in now if c not in then]
        return [f"{name}: {', '.join(only[:3]) or 'another order'}"]
    if name == "labels":
        return ["the labels differ"]
    was, is_now = ("not given" if v is None else v for v in (then, now))
    return [f"{name} was {was}, now {is_now}"]


def _write_whole(path: pathlib.Path, data: bytes) -> None:
    """Under its final name only when whole and on the disk: also after a power failure."""
    beside = path.with_name(f".{path.name}.tmp")
    with _writing(path):
        with open(beside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        _sync_folder(path.parent)


def _sync_folder(folder: pathlib.Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def _size(size: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{size:.4g} {unit}"


if __name__ == "__main__":
    cli.main(pack, unheard=True)
