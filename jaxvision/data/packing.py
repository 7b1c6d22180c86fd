"""Packing: a data set into a folder of a few large files, whole or resumed, read again before it counts."""

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
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent import futures
from typing import Any, TypeVar

import numpy as np
from array_record.python import array_record_module
from PIL import Image

import jaxvision
from jaxvision.data import survey
from jaxvision.data.contract import InputContract
from jaxvision.data.decode import MAX_PIXELS, decode
from jaxvision.data.sample import LABEL, fields_of
from jaxvision.data.sources import Source, open_source, records
from jaxvision.data.sources.common import notes
from jaxvision.errors import Damaged, Interrupted, Unreadable, UserError
from jaxvision.runtime import machine, paths
from jaxvision.runtime.records import Say
from jaxvision.runtime.stop import Stop

T = TypeVar("T")
R = TypeVar("R")

THEN = "make room there or allow it, the same command resumes; or name another --out"
PART = {"count": int, "bytes": int, "sha256": str, "digest": str, "skipped": list}  # what is said of a shard
_NAMES = {  # of the keys of info.json that two runs must share, for messages
    "source.uri": "--from",
    "source.count": "the number of samples",
    "source.labels_sha256": "labels",
    "options.shards": "--shards",
    "options.longest": "--longest",
    "options.quality": "--quality",
}


def pack(
    uri: str,
    out: str,
    *,
    shards: int | None,
    samples: int,
    encoder: Encoder,
    threads: int | None,
    skip: bool,
    say: Say,
    live: bool,
) -> dict[str, Any]:
    """Packs a source into a folder, or goes on with a folder begun, and returns what the command prints as JSON.

    Args:
      uri, out: the source's, and the folder's name.
      shards: number of files; None: as few as hold at most `samples` each.
      encoder: what becomes of an image.
      threads: that read and encode; None: one a core.
      skip: leave out unreadable images instead of raising.
      say, live: who is told, and whether there is a terminal for a progress bar.

    Raises:
      UserError: the source is unreadable or empty, the folder holds other files or cannot be written.
      Interrupted: someone asked to stop; the same call goes on.
    """
    began = time.perf_counter()
    paths.require_folder(out, "--out")
    source = open_source(uri)
    if len(source) == 0:
        raise UserError(f"{source.uri} holds no samples: check the path and the split")
    names = [field.name for field in fields_of(source)]
    if names != ["label"]:
        raise UserError(f"{source.uri} has {', '.join(names)}, and records hold one label a sample: read it as it is")
    shards = shards or -(-len(source) // samples)
    if shards > len(source):
        raise UserError(f"--shards is {shards}, but {source.uri} holds {len(source)} samples: take fewer")
    for line in notes([source]):
        say(line)
    if hasattr(source, "groups"):
        say(f"{source.uri} has groups, and records keep none: pack the data of an evaluation apart, by split= or part=")
    for line in () if encoder.keeps_bytes else survey.levels_told(source.uri, survey.encoded(source), InputContract()):
        say(f"{line}; --longest and --quality store 8 bits and no alpha for good: without them files stay as they are")
    folder = paths.on_disk(out, "--out")
    busy = f"another process is packing into {folder}: wait for it, or name another --out"
    try:
        with Stop() as stop, paths.lock(folder, busy):
            return Packing(
                began=began,
                source=source,
                out=folder,
                shards=shards,
                encoder=encoder,
                threads=machine.cores() if threads is None else threads,
                skip=skip,
                say=say,
                live=live,
                stop=stop,
            ).run()
    except OSError as error:  # what cannot be read of the source is no OSError any more
        raise paths.unwritable(pathlib.Path(error.filename or folder), error, THEN) from error


def content_digest(source: Source) -> str:
    """SHA-256 over all samples in order, each as `records.sample_digest` gives it: hexadecimal.

    A data set that was packed with its bytes kept has the digest of its source.
    """
    total = hashlib.sha256()
    for i in range(len(source)):
        total.update(records.sample_digest(source[i], source.kind))
    return total.hexdigest()


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Encoding of an image for storage.

    `longest`, `quality` and `max_pixels` as the flags; None: not given.
    """

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
    .shard-....tmp: the shard being written.
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
    stop: Stop
    written: int = 0  # in this run

    def run(self) -> dict[str, Any]:
        self.labels = np.ascontiguousarray(self.source.labels, LABEL[self.source.kind].dtype)
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
        _save(self.out / records.INFO, _json(info))
        self._tidy()
        return self._report(info)

    # ----------------------------------------------------------------------- before

    def _plan(self) -> dict[str, Any]:
        """Facts that must be the same when a second run goes on."""
        plan = {
            "version": records.VERSION,
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
        path = self.out / records.PLAN
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
            _save(path, _json(plan))
        for left in self.out.glob(f".*{paths.BESIDE}"):
            left.unlink()

    def _whole(self, k: int) -> dict[str, Any] | None:
        """Contents of shard k, as its file of JSON says; None if the shard is absent or must be written again."""
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
        """Reports a folder that is packed to the end already."""
        info = records.Records(str(self.out)).info
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
        return i, records.record(sample, self.source.kind), self._digest(sample), ""

    def _digest(self, sample: dict[str, Any]) -> bytes:
        return records.sample_digest(sample, self.source.kind)

    def _write(
        self, k: int, samples: Iterable[tuple[int, bytes, bytes, str]], step: Callable[[], None]
    ) -> dict[str, Any]:
        """Writes shard k, under its final name only when whole and on the disk.

        Returns what its file of JSON says.
        """
        path = self.out / self.names[k]
        digest, count, skipped = hashlib.sha256(), 0, []
        with paths.whole(path, synced=True) as partial:
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
                records.open_shard(str(partial), count).close()
            part = {
                "count": count,
                "bytes": partial.stat().st_size,
                "sha256": paths.digest(partial),
                "digest": digest.hexdigest(),
                "skipped": skipped,
            }
            _save(path.with_suffix(".json"), _json(part))  # first: a shard is never without it
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
        buffer = io.BytesIO()
        np.save(buffer, array)
        data = buffer.getvalue()
        _save(self.out / name, data)
        return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    def _verify(self, info: dict[str, Any], kept: Any) -> tuple[str, list[int]]:
        """The digest of what a reader of the final files gets, and the `index` of each sample.

        It must be what the source gives when it is read a second time, or, for images that were encoded again,
        what was written. A shard that is not is removed; the same command writes it again.
        """
        packed = records.Records(str(self.out), info)

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
        (self.out / records.PLAN).unlink(missing_ok=True)
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
        """Yields a function to call after each image, which moves the display, or says a line every 10 s.

        The function raises where the packing was asked to stop.
        """
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
    """Raises errors of writing that name the file, where a disk is full or a limit is reached.

    The writer of shards raises RuntimeError then.
    """
    try:
        yield
    except (RuntimeError, ValueError, OSError) as error:
        raise paths.unwritable(path, error, THEN) from error


def _save(path: pathlib.Path, data: bytes) -> None:
    with _writing(path), paths.whole(path, synced=True) as beside:
        beside.write_bytes(data)


def _differences(then: Any, now: Any, name: str = "") -> list[str]:
    """Differences of two values of JSON, as lines for people."""
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


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def _size(size: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{size:.4g} {unit}"
