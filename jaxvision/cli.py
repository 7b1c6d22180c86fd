"""Flags, messages, exit codes, the clock on a terminal and the last line of JSON, shared by all commands."""

from __future__ import annotations

import time

STARTED = time.perf_counter()  # before the heavy imports, which each command makes after parsing its flags

import argparse  # noqa: E402
import atexit  # noqa: E402
import contextlib  # noqa: E402
import gc  # noqa: E402
import importlib.metadata  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import platform  # noqa: E402
import shutil  # noqa: E402
import sys  # noqa: E402
import threading  # noqa: E402
import traceback  # noqa: E402
import zlib  # noqa: E402
from collections.abc import Callable, Iterator, Sequence  # noqa: E402
from typing import Any, NoReturn  # noqa: E402

from jaxvision.errors import Unfit, UserError, nearest  # noqa: E402
from jaxvision.runtime import hosts  # noqa: E402
from jaxvision.runtime.stop import catch, end_at_ctrl_c, interrupted  # noqa: E402

# A command, `python -m jaxvision.NAME`, imports more before it calls `main`. Other programs keep their own Ctrl-C.
if str(getattr(getattr(sys.modules["__main__"], "__spec__", None), "name", "")).startswith("jaxvision."):
    end_at_ctrl_c()

EPILOG = "exit codes: 0 done, 2 bad config, data or arguments, 3 training diverged, 75 interrupted after saving"


def _pixels(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of pixels, wanted a whole number from 1")
    return int(text)


class Parser(argparse.ArgumentParser):
    """argparse, with the nearest name for an unknown flag, no abbreviations, and --json and --debug."""

    def __init__(self, module: str, description: str, examples: Sequence[str]) -> None:
        super().__init__(
            prog=f"python -m {module}",
            description=description,
            epilog="examples:\n" + "\n".join(f"  {e}" for e in examples) + f"\n\n{EPILOG}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.add_argument("--json", action="store_true", help="print nothing but a last line of JSON")
        self.add_argument("--debug", action="store_true", help="show the traceback of an error")

    def add_from(self, *, required: bool = True, exported: bool = False) -> None:
        """Adds the flags that name a trained network; with `exported`, also those that name an exported file."""
        self.add_argument(
            "--from",
            dest="source",
            required=required,
            metavar="FROM",
            help="a workdir, a checkpoint folder in one, or published weights: timm:NAME.TAG=FILE, "
            "torchvision:NAME=FILE, augreg:NAME=FILE, hf:timm/NAME.TAG"
            + ("; or an exported file, FILE.onnx, FILE.tflite, FILE.stablehlo, FILE.safetensors" if exported else ""),
        )
        self.add_argument("--checkpoint", default="", metavar="C", help="best, last (default) or a step")

    def add_max_pixels(self, default: int | None = None) -> None:
        """Adds --max-pixels, which bounds the pixels of an image; without a default the training's bound holds."""
        told = "data.max_pixels of the training" if default is None else f"{default:,}"
        self.add_argument(
            "--max-pixels",
            type=_pixels,
            default=default,
            metavar="N",
            help=f"an image of more cannot be read, since each takes 7 bytes; default: {told}",
        )

    def add_wait(self) -> None:
        """Adds --wait: for how long, in seconds, the processes of a job wait for each other."""
        self.add_argument(
            "--wait",
            type=float,
            default=hosts.WAIT,
            metavar="SECONDS",
            help="with several processes: for how long all may take to be there; default %(default)g",
        )

    def parse(self, argv: Sequence[str], prefix: str = "") -> tuple[argparse.Namespace, dict[str, str]]:
        """Returns the flags, and what was given as `--PREFIX.KEY=VALUE` or `--PREFIX.KEY VALUE`.

        Raises UserError.
        """
        overrides: dict[str, str] = {}
        rest: list[str] = []
        pending = list(argv)
        while pending:
            word = pending.pop(0)
            if prefix and word.startswith(f"--{prefix}."):
                key, equals, value = word[len(prefix) + 3 :].partition("=")
                if not equals:
                    if not pending or pending[0].startswith("--"):
                        raise UserError(f"{word} needs a value: {word}=VALUE")
                    value = pending.pop(0)
                overrides[key] = value
            elif not word or (word.startswith("--") and word.find("=") == len(word) - 1):
                flag = word[:-1] or (rest[-1] if rest and rest[-1].startswith("--") else "an argument")
                raise UserError(f"{flag} is empty: give it a value, or leave it out (an unset variable of the shell?)")
            else:
                rest.append(word)
        arguments, unknown = self.parse_known_args(rest)
        if unknown:
            flags = [f for action in self._actions for f in action.option_strings if f.startswith("--")]
            name, _, value = unknown[0].partition("=")
            keys = _keys_called(name[2:].replace("-", "_")) if prefix == "config" and name[:2] == "--" else []
            value = value or "".join(unknown[1:2])
            hint = f"did you mean {' or '.join(f'--config.{key}={value}' for key in keys)}?" if keys else ""
            raise UserError(f"unknown argument {unknown[0]!r}: {hint or nearest(name, flags)}")
        if not getattr(arguments, "wait", 0.0) >= 0:
            raise UserError(f"--wait is {arguments.wait}: it is a number of seconds, at least 0")
        if arguments.json:
            os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # read when huggingface_hub is imported, if it is
        return arguments, overrides

    def need_positive(self, arguments: argparse.Namespace, *names: str) -> None:
        """Raises UserError for the first of the flags `names` that was given a number below 1."""
        for name in names:
            value = getattr(arguments, name)
            if value is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')} is {value}: it must be at least 1")

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def _keys_called(name: str) -> list[str]:
    """Keys of the config that somebody may mean by a flag: keys of that name, or `name` and `train` of a group so
    named.
    """
    from ml_collections import ConfigDict

    from jaxvision import config

    tree = config.default()
    group = tree.get(name)
    if isinstance(group, ConfigDict):
        return [f"{name}.{key}" for key in ("name", "train") if key in group]
    return [key for key in config.flat(tree.to_dict()) if key.rpartition(".")[2] == name][:3]


def main(
    command: Callable[[list[str]], dict[str, Any]], argv: list[str] | None = None, *, unheard: bool = False
) -> NoReturn:
    """Runs a command, prints its result as the last line of standard output, exits as errors.py says.

    unheard: it goes on where nobody reads what it prints (a closed pipe, a lost terminal, a full disk), since what it
    makes are files.
    """
    end_at_ctrl_c()
    atexit.register(gc.freeze)  # else Python's last collection goes through all that was imported and traced: a second
    argv = sys.argv[1:] if argv is None else argv
    code = 0
    try:
        result = _result(command, argv, unheard)
        if hosts.index() == 0:
            print_result(result, asked="--json" in argv)
    except (UserError, OSError) as error:
        code = _report(error, argv)
    except KeyboardInterrupt:
        catch()
        _tell("interrupted, nothing saved since the last checkpoint", sys.stderr)
        code = 130
        hosts.fail(code, "interrupted")
    except Exception as error:
        if hosts.several():
            traceback.print_exc()
            hosts.fail(1, f"{type(error).__name__}: {error}")
        raise
    catch()  # the command is over: a Ctrl-C from here on is raised once, whoever called this
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    sys.exit(code)


def _result(command: Callable[[list[str]], dict[str, Any]], argv: list[str], unheard: bool) -> dict[str, Any]:
    """Runs a command and returns the result for its last line of JSON.

    Raises KeyboardInterrupt also where a library swallowed the interrupt, or made another error of it.
    """
    try:
        _open_standard_streams()
        if unheard:
            sys.stdout, sys.stderr = _Unheard(sys.stdout), _Unheard(sys.stderr)
        quiet_libraries()
        without_ynnpack()
        keep_compiled()
        result = command(argv)
    except Exception as error:
        if interrupted():
            raise KeyboardInterrupt from error
        raise
    finally:
        ticker.stop()
    if interrupted():
        raise KeyboardInterrupt
    return result


def _report(error: UserError | OSError, argv: list[str]) -> int:
    """Reports an error to people and to the other processes, and returns the exit code.

    Ends the process itself where a disk failed.
    """
    if "--debug" in argv:
        traceback.print_exc()
    code = getattr(error, "exit_code", 2)
    together = isinstance(error, Unfit)
    if hosts.index() == 0 or not together:
        partly = getattr(error, "result", None)
        if partly is not None:
            with contextlib.suppress(OSError):
                print_result(partly, asked="--json" in argv)
        prefix = f"process {hosts.index()}: " if hosts.several() and not together else ""
        prefix += "" if code == 75 else "error: "
        _tell(f"{prefix}{_words(error)}", sys.stderr)
    if code not in (3, 75) and not together:  # those all reach at the same step
        hosts.fail(code, str(error))
    if isinstance(error, OSError) or isinstance(error.__cause__, OSError):
        os._exit(code)  # exit handlers of libraries would write to the same disk again, and print tracebacks
    return code


def _words(error: UserError | OSError) -> str:
    """An error for people: Python puts the number of an OSError first, and its file last."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    return str(error)


def _tell(text: str, stream: Any) -> None:
    with contextlib.suppress(OSError):  # nobody reads it: the exit code says it, too
        print(text, file=stream, flush=True)


class _Unheard:
    """A standard stream that loses, from the first error of a write on, what is written to it."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _try(self, method: Callable[..., Any], *arguments: Any) -> None:
        try:
            method(*arguments)
        except OSError:
            # what is left in buffers, and what libraries write below Python, goes the same way
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def write(self, text: str) -> int:
        self._try(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)


def _open_standard_streams() -> None:
    """Opens the standard streams that were closed (`>&-`).

    Else a file that is opened next would get the number of one, and what is printed. Has what their encoding lacks
    printed as escapes: the name of a file must not end a command.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a test's has it not
            stream.reconfigure(errors="backslashreplace")


def print_result(result: dict[str, Any], *, asked: bool) -> None:
    """Prints a result as one line of JSON; on a terminal only if it fits into a line there, or was `asked` for."""
    line = json.dumps(result)
    if asked or not sys.stdout.isatty() or len(line) <= shutil.get_terminal_size().columns:
        print(line, flush=True)


class Ticker:
    """A line of a terminal that tells what a command is at and for how long, while it has nothing else to show.

    It is on standard error, goes when it is stopped or something else is printed, and is nowhere but on a terminal.
    """

    def __init__(self) -> None:
        self.at: Callable[[], str] = lambda: ""  # what the command is at
        self._ends, self._lock = threading.Event(), threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self, arguments: argparse.Namespace, at: str) -> bool:
        """Whether there is a terminal to tick on; with --json there is none."""
        self.tell(at)
        if not arguments.json and sys.stderr.isatty() and self._thread is None:
            self._ends.clear()
            self._thread = threading.Thread(target=self._tick, name="ticker", daemon=True)
            self._thread.start()
        return self._thread is not None

    def tell(self, at: str) -> None:
        """Sets the text that says what the command is at now."""
        self.at = lambda: at

    def _tick(self) -> None:
        while not self._ends.wait(1.0):
            spent = int(time.perf_counter() - STARTED)
            line = f"{spent // 60}:{spent % 60:02} {self.at()}"[: shutil.get_terminal_size().columns - 1]
            with self._lock:
                if not self._ends.is_set():
                    self._write(f"\r\x1b[K{line}")

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # a terminal that is gone is no reason to stop
            sys.stderr.write(text)
            sys.stderr.flush()

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """Clears the line for as long as the block runs."""
        with self._lock:
            if self._thread is not None:
                self._write("\r\x1b[K")
            yield

    def stop(self) -> None:
        """Removes the line for good; does nothing where none is shown."""
        if self._thread is not None:
            self._ends.set()
            with self.away():
                self._thread = None


ticker = Ticker()


def printer(arguments: argparse.Namespace) -> Callable[[str], None]:
    """print, or nothing with --json; of several processes only the first says anything."""

    def say(text: str) -> None:
        if not arguments.json and hosts.index() == 0:
            with ticker.away():
                print(text, flush=True)

    return say


def progress(arguments: argparse.Namespace) -> Callable[[Iterator[Any], int | None, str], Iterator[Any]]:
    """(iterator, how many if known, what) -> the same iterator, with a progress bar if standard error is a terminal."""

    def show(items: Iterator[Any], total: int | None, what: str) -> Iterator[Any]:
        if arguments.json or hosts.index() or not sys.stderr.isatty():
            return items
        from tqdm import tqdm

        ticker.stop()
        return iter(tqdm(items, desc=what, total=total, unit="image", dynamic_ncols=True, leave=False))

    return show


def quiet_libraries() -> None:
    """Silences what Orbax, TensorStore, XLA and TFDS log at INFO and WARNING, on which no user can act."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("ABSL_MIN_LOG_LEVEL", "2")
    import logging
    import warnings

    warnings.filterwarnings("ignore", "Image size .* could be decompression bomb")  # data.max_pixels decides
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # what Orbax logs at ERROR it also raises
    logging.getLogger("jax").setLevel(logging.ERROR)
    sys.unraisablehook = _unraisable


def without_ynnpack() -> None:
    """Asks XLA, before jax starts it, to compile for a CPU without YNNPACK, a library that jaxlib 0.10 uses by itself.

    Steps of ResNet-50 take about a sixth longer with it, and gradients of the largest kernels twelve times as long;
    docs/models.md has the measurements. What XLA_FLAGS already says about it stays. XLA aborts at a flag that it does
    not know, and this one is experimental: only versions that were tried are asked, on the platform they were tried on.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    version = ".".join(importlib.metadata.version("jaxlib").split(".")[:2])
    machine = (sys.platform, platform.machine())
    if _YNN not in flags and version in _YNN_TRIED and machine == ("linux", "x86_64"):
        os.environ["XLA_FLAGS"] = f"{flags} --{_YNN}=".strip()


def keep_compiled() -> None:
    """Asks JAX, before it is imported, to keep programs that took it more than a second to compile, for the next start.

    In $XDG_CACHE_HOME/jaxvision, ~/.cache where that is not set. What JAX_COMPILATION_CACHE_DIR says stays, and
    JAX_ENABLE_COMPILATION_CACHE=false turns it off.
    """
    from jaxvision.runtime import paths

    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(paths.cache() / "compiled" / _processor()))


def _processor() -> str:
    """Name of the instruction set of this machine's processor.

    Compiled programs for a CPU are kept by this name: machines that share a home use each other's only where their
    processors have the same instructions.
    """
    flags = ""
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        flags = next((line for line in file if line.startswith(("flags", "Features"))), "")
    return f"{platform.machine()}-{zlib.crc32(flags.encode()):08x}"


_YNN = "xla_cpu_experimental_ynn_fusion_type"
_YNN_TRIED = ("0.10",)


def _unraisable(unraisable: Any) -> None:
    """Python's own hook for unraisable errors, silent about one that follows a failed save.

    When a save failed (full disk), writes of TensorStore that were still under way report to Orbax's event loop, which
    is closed by then, and print that beside the error that matters.
    """
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)
