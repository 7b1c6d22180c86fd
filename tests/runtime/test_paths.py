"""Files that are whole or absent, what a disk refuses, and the one reader of our JSON files."""

import errno
import resource
import shutil

import pytest
from etils import epath

from jaxvision.errors import Damaged, Gone, UserError
from jaxvision.runtime import paths

SHAPE = {"step": int, "evals": {...: {...: (int, float, type(None))}}, "rows": [{"reason": str}]}
GOOD = b'{"step": 3, "evals": {"test": {"top1": 0.5, "loss": null}}, "rows": [{"reason": "x", "more": 1}], "other": []}'


def test_json_of_the_right_shape_is_read(tmp_path):
    path = epath.Path(tmp_path) / "a.json"
    path.write_bytes(GOOD)
    assert paths.read_json(path, SHAPE)["evals"] == {"test": {"top1": 0.5, "loss": None}}
    with pytest.raises(FileNotFoundError):
        paths.read_json(path.parent / "absent.json")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "Expecting value"),
        (GOOD[: len(GOOD) // 2], r"a\.json is damaged \("),
        (b"\xff" + GOOD[1:], "decode"),
        (b"[" * 100_000, "recursion"),
        (b"[]", "its content is \\[\\] instead of a dict"),
        (b"null", "its content is None instead of a dict"),
        (b"{}", "it has no step"),
        (GOOD.replace(b"3", b'"3"'), "step is '3' instead of int"),
        (GOOD.replace(b"3", b"true"), "step is True instead of int"),
        (GOOD.replace(b"0.5", b"[0.5]"), r"evals\.test\.top1 is \[0\.5\] instead of int or float or NoneType"),
        (GOOD.replace(b'"x"', b"7"), r"rows\[0\]\.reason is 7 instead of str"),
        (GOOD.replace(b"reason", b"raison"), r"it has no rows\[0\]\.reason"),
    ],
)
def test_damaged_json_is_named(tmp_path, content, said):
    path = epath.Path(tmp_path) / "a.json"
    path.write_bytes(content)
    with pytest.raises(Damaged, match=said) as error:
        paths.read_json(path, SHAPE)
    assert str(path) in str(error.value)
    assert len(str(error.value)) < 300


def test_a_folder_in_a_file_s_place_is_damage(tmp_path):
    with pytest.raises(Damaged, match="Is a directory"):
        paths.read_json(epath.Path(tmp_path))


@pytest.fixture
def small_files():
    """No file may grow beyond 1000 bytes, as under `ulimit -f`."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_that_the_system_refuses_is_named_and_leaves_nothing(tmp_path, small_files):
    path = epath.Path(tmp_path) / "big.bin"
    path.write_text("before")
    with pytest.raises(UserError, match=r"cannot write .*/big\.bin: File too large"):
        paths.write_whole(path, bytes(2000))
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["big.bin"]
    lines = paths.Lines(epath.Path(tmp_path) / "lines", "")
    with pytest.raises(UserError, match=r"cannot write .*/lines: File too large"):
        lines.write("x" * 2000)


def test_where_nothing_can_be_written_is_said_before_with_the_flag(tmp_path):
    folder = epath.Path(tmp_path) / "a" / "b"
    paths.require_writable(folder)
    assert list(folder.iterdir()) == []
    with pytest.raises(UserError, match=r"/proc/a cannot be written \(.+\): name another folder with --out"):
        paths.require_writable(epath.Path("/proc/a"))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="name another folder with --workdir"):
        paths.require_writable(epath.Path(tmp_path) / "file" / "a", "--workdir")


@pytest.mark.parametrize("how", ["deleted", "moved", "replaced"])
def test_lines_for_a_file_that_is_gone_are_refused(tmp_path, how):
    """The system itself says nothing: an open file goes on without its name."""
    folder = tmp_path / "w"
    lines = paths.Lines(epath.Path(folder) / "lines", "")
    lines.write("one")
    assert lines.there()
    if how == "deleted":
        shutil.rmtree(folder)
    elif how == "moved":
        folder.rename(tmp_path / "elsewhere")
    else:
        paths.write_whole(epath.Path(folder) / "lines", "another's")
    assert not lines.there()
    for write in (lambda: lines.write("two"), lines.flush):
        with pytest.raises(Gone, match="was deleted, moved or replaced"):
            write()
    lines.close()
    assert folder.exists() == (how == "replaced")


def test_errors_of_writes_have_words(tmp_path):
    error = paths.unwritable(epath.Path("x"), OSError(errno.ENOSPC, "No space left on device"))
    assert str(error) == "cannot write x: No space left on device"


def test_what_a_bucket_refuses_is_said_of_files_written_piece_by_piece_too():
    class Refused(type(epath.Path("x"))):
        """A path of a bucket that takes nothing, as gcsfs has it."""

        def __str__(self):
            return "gs://nowhere/answers.csv"

        def write_bytes(self, data):
            raise RuntimeError("no such bucket")

    for write in (lambda path: paths.write_whole(path, b"a"), lambda path: _written(path)):
        with pytest.raises(UserError, match=r"cannot write gs://nowhere/answers\.csv \(no such bucket\): does the buc"):
            write(Refused("answers.csv"))


def _written(path):
    with paths.whole(path) as beside:
        beside.write_bytes(b"a")
