"""Paths on a disk or in a bucket (gs://...): files are whole or absent on both; what must lie on a disk is fetched.

An object of a bucket is there once its last byte was sent, and cannot be renamed or grow; a file on a disk is written
beside its place and then renamed.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import pathlib
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

from etils import epath

from jaxvision.errors import Damaged, Gone, UserError

BESIDE = ".tmp"  # ends the name of a file that is not whole yet
PATIENCE = 30.0  # seconds that lines may wait before an object is written anew for them


def is_bucket(name: str | os.PathLike) -> bool:
    return "://" in str(name)


def path(name: str | epath.Path) -> epath.Path:
    """The path of a name, with ~ expanded.

    Raises UserError for a bucket without the extra gcs.
    """
    if not is_bucket(name):
        return epath.Path(name).expanduser()
    if str(name).startswith("gs://") and importlib.util.find_spec("gcsfs") is None:
        raise UserError(f'{name} is in a bucket: pip install "jaxvision[gcs]"')
    import fsspec

    # Other hosts write there too: what a folder held a minute ago is no answer.
    fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)
    return epath.Path(name)


def on_disk(name: str, what: str) -> pathlib.Path:
    """The path on a disk of a name, with ~ expanded, for what a bucket does not serve.

    Raises UserError if it is in one.
    """
    if is_bucket(name):
        raise UserError(f"{what} {name}: that must be on a disk; copy it there or from there with gcloud storage cp -r")
    return pathlib.Path(name).expanduser()


@contextlib.contextmanager
def whole(path: epath.Path | pathlib.Path, *, synced: bool = False, shared: bool = False) -> Iterator[pathlib.Path]:
    """A place to write a file to, which gets its name when the block ends, and is removed where the block raises.

    Raises UserError where a bucket refuses the file; errors of a disk are the caller's to put into words.

    Args:
      path: of the file, on a disk or in a bucket.
      synced: the file is on the disk afterwards, also after a power failure.
      shared: others may be writing this file now, so each has a place of its own. Else what a killed process left
        at the place is written over.
    """
    target = pathlib.Path(tempfile.gettempdir(), path.name) if is_bucket(path) else pathlib.Path(path)
    mark = f".{uuid.uuid4().hex}" if shared or is_bucket(path) else ""
    beside = target.with_name(f".{target.name}{mark}{BESIDE}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield beside
        if is_bucket(path):
            _upload(path, beside.read_bytes())
            return
        if synced:
            sync(beside)
        beside.replace(target)
        if synced:
            sync(target.parent)
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


def _upload(path: epath.Path | pathlib.Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except Exception as error:  # gcsfs has several, with nothing in common
        raise UserError(
            f"cannot write {path} ({error}): does the bucket exist, and may this account write there?"
        ) from error


def sync(path: pathlib.Path) -> None:
    """Waits until a file, or the list of files of a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: epath.Path | pathlib.Path, content: str | bytes, *, synced: bool = False) -> None:
    """Writes a file, under its final name only when whole. Raises UserError, which names it, where that fails."""
    data = content.encode() if isinstance(content, str) else content
    if is_bucket(path):
        _upload(path, data)
        return
    try:
        with whole(path, synced=synced) as beside:
            beside.write_bytes(data)
    except OSError as error:
        raise unwritable(path, error) from error


def digest(path: epath.Path | pathlib.Path) -> str:
    """SHA-256 of a file's content, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        if hasattr(file, "fileno"):
            return hashlib.file_digest(file, "sha256").hexdigest()
        return hashlib.sha256(file.read()).hexdigest()  # on a bucket


def unwritable(path: epath.Path | pathlib.Path, error: Exception, then: str = "") -> UserError:
    """The UserError for a file that a disk does not take: an OSError of a write does not name its file.

    then: what to do.
    """
    reason = " ".join(str(getattr(error, "strerror", None) or error).split())
    return UserError(f"cannot write {path}: {reason}" + (f": {then}" if then else ""))


def is_utf8(name: str) -> bool:
    """Whether a name is text. Those of files may hold any bytes, which Python keeps as escapes that are no UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def require_writable(folder: epath.Path, flag: str = "--out") -> None:
    """Makes the folder, and raises UserError, which says what else `flag` may name, if no file can be written there.

    To be asked before hours of work whose result goes there.
    """
    probe = folder / f".writable.{os.getpid()}"
    try:
        write_whole(probe, "")
        probe.unlink()
    except (UserError, OSError) as error:
        cause = error.__cause__ or error
        reason = getattr(cause, "strerror", None) or cause
        raise UserError(f"{folder} cannot be written ({reason}): name another folder with {flag}") from error


def require_folder(name: str, flag: str) -> None:
    """Raises UserError where a folder to be made cannot be one: it, or what it lies in, is a file. Makes nothing."""
    if is_bucket(name):
        return
    folder = pathlib.Path(name).expanduser()
    there = next((p for p in (folder, *folder.parents) if os.path.lexists(p)), None)
    if there is not None and not there.is_dir():
        raise UserError(f"{flag} {name}: {there} is a file, and no folder: name another one")


def write_json(path: epath.Path, content: dict[str, Any]) -> None:
    """Writes a JSON object, with a checksum among its keys that `read_json` holds it against."""
    write_whole(path, json.dumps({**content, "checksum": _checksum(content)}, indent=1))


def _checksum(content: dict[str, Any]) -> str:
    as_read = json.loads(json.dumps(content))  # keys are text, tuples are lists
    return hashlib.sha256(json.dumps(as_read, sort_keys=True).encode()).hexdigest()[:16]


def read_json(path: epath.Path, shape: Any = dict) -> Any:
    """The content of a JSON file of ours, without its checksum.

    shape: what it must be. A type, or a tuple of types; [S], a list of S; {"key": S}, a dict with this key, others may
    be there; {"key?": S}, the same where it has the key; {...: S}, a dict in which all values are S. Raises
    FileNotFoundError, and Damaged where it is no JSON, was changed since `write_json`, or is of another shape.
    """
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, no JSON
        raise Damaged(f"{path} is damaged ({getattr(error, 'strerror', None) or error})") from error
    if isinstance(content, dict) and "checksum" in content and content.pop("checksum") != _checksum(content):
        raise Damaged(f"{path} is damaged (it was changed after it was written)")
    reason = _misfit(content, shape, "")
    if reason:
        raise Damaged(f"{path} is damaged ({reason})")
    return content


def _misfit(content: Any, shape: Any, where: str) -> str:
    """Place and way in which the content has another shape; "" if it has the stated one."""
    if isinstance(shape, list | dict):
        if not isinstance(content, type(shape)):
            return f"{where or 'its content'} is {_brief(content)} instead of a {type(shape).__name__}"
        inner: list[tuple[Any, Any, str]] = []
        if isinstance(shape, list):  # of items of one shape
            inner = [(item, shape[0], f"{where}[{k}]") for k, item in enumerate(content)]
        else:
            dot = f"{where}." if where else ""
            each = shape.get(...)
            for name, kind in shape.items() if each is None else dict.fromkeys(content, each).items():
                key = name.removesuffix("?") if each is None else name
                if key in content:
                    inner.append((content[key], kind, f"{dot}{key}"))
                elif key == name:
                    return f"it has no {dot}{key}"
        return next(filter(None, (_misfit(*one) for one in inner)), "")
    types = shape if isinstance(shape, tuple) else (shape,)
    if isinstance(content, types) and (not isinstance(content, bool) or bool in types):
        return ""
    return f"{where or 'its content'} is {_brief(content)} instead of {' or '.join(kind.__name__ for kind in types)}"


def _brief(content: Any) -> str:
    text = repr(content)
    return text if len(text) <= 40 else text[:37] + "..."


@contextlib.contextmanager
def lock(folder: epath.Path | pathlib.Path, busy: str) -> Iterator[None]:
    """Makes a folder and holds it: one process at a time. Raises UserError, with the words `busy`.

    Only on a local disk (a bucket has no locks). A killed process leaves no lock behind.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if is_bucket(str(folder)):
        yield
        return
    import fcntl

    with open(str(folder / ".lock"), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(busy) from error
        yield


class Lines:
    """A text file that grows by lines; `content` is what it begins with.

    On a disk a line is there at once. In a bucket the whole is written anew, at most every PATIENCE seconds, and by
    `flush`.
    """

    def __init__(self, path: epath.Path, content: str) -> None:
        self.path = path
        write_whole(path, content)
        self._file = None if is_bucket(path) else path.open("a")
        self._content = self._written = content
        self._when = time.monotonic()
        self._lock = threading.Lock()

    def write(self, line: str) -> None:
        """Writes a line; raises UserError where the disk refuses it, Gone where the file is no longer there."""
        if self._file is not None:
            self._require_there()
            try:
                self._file.write(line + "\n")
                self._file.flush()
            except OSError as error:
                raise unwritable(self.path, error) from error
            return
        self._content += line + "\n"
        if time.monotonic() > self._when + PATIENCE:
            self.flush()

    def flush(self) -> None:
        """Waits until all lines so far are in the file.

        Another thread may write more meanwhile.
        """
        if self._file is not None:
            self._require_there()
        with self._lock:
            content = self._content
            if content != self._written:
                write_whole(self.path, content)
                self._written, self._when = content, time.monotonic()

    def there(self) -> bool:
        """Whether the file still has its name: one that was deleted or moved takes lines without a word."""
        if self._file is None or self._file.closed:
            return self._file is None or self.path.exists()
        ours = os.fstat(self._file.fileno())
        try:
            found = os.stat(self.path)
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == (ours.st_dev, ours.st_ino)

    def _require_there(self) -> None:
        if not self.there():
            raise Gone(
                f"{self.path} was deleted, moved or replaced while this process wrote it, so nothing more is saved "
                f"there: leave {self.path.parent} where it is until the end, or name another folder"
            )

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        else:
            self.flush()


def cache() -> pathlib.Path:
    """Folder of what can be had again: $XDG_CACHE_HOME/jaxvision, ~/.cache/jaxvision where that is not set."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return pathlib.Path(home, "jaxvision")


def fetched(name: str, size: int | None = None) -> pathlib.Path:
    """A file on a disk: that of this name, or a copy of a bucket's, fetched once and kept in the cache.

    size: in bytes, where it is known that it must have it. Raises UserError if it is not there, has another size or
    finds no room.
    """
    if not is_bucket(name):
        return pathlib.Path(name).expanduser()
    source = path(name)
    try:
        stat = source.stat()
    except FileNotFoundError as error:
        raise UserError(f"{name} does not exist") from error
    if size is not None and stat.length != size:
        raise UserError(f"{name} has {stat.length} bytes instead of {size}: copy it again or pack again")
    version = hashlib.sha256(f"{name} {stat.length} {stat.mtime}".encode()).hexdigest()[:16]
    target = cache() / "fetched" / version / source.name
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    room = shutil.disk_usage(target.parent).free
    if stat.length > room:
        raise UserError(
            f"{name} has {stat.length / 1e9:.1f} GB, {target.parent} room for {room / 1e9:.1f}: let XDG_CACHE_HOME "
            "name a larger disk, or mount the bucket (gcsfuse) and name the folder"
        )
    with whole(target, shared=True) as beside:
        with source.open("rb") as remote, open(beside, "wb") as file:
            shutil.copyfileobj(remote, file, 16 << 20)
        if beside.stat().st_size != stat.length:
            raise UserError(f"{name} came as {beside.stat().st_size} bytes of {stat.length}: try again")
    return target
