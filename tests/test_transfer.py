"""The transfer command: what it reads from its flags, and one checkpoint on a second data set."""

import json

import pytest

from jaxvision.errors import UserError
from jaxvision.training.transfer import HOW, DataSet, data_set, table
from jaxvision.transfer import transfer
from tests.training.test_loop import fit


@pytest.mark.parametrize(
    ("text", "name", "train", "test"),
    [
        ("digits:train,digits:test", "digits-train", "digits:train", "digits:test"),
        ("folder:/a/pets", "folder--a-pets", "folder:/a/pets?split=0:80%", "folder:/a/pets?split=80%:100%"),
        (
            "csv:/x.csv?kind=class",
            "csv--x-csv",
            "csv:/x.csv?kind=class&split=0:80%",
            "csv:/x.csv?kind=class&split=80%:100%",
        ),
    ],
)
def test_what_is_learnt_from_and_tested_on(text, name, train, test):
    assert data_set(text) == DataSet(name, train, test)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "nowhere to go: name a data source, as --to digits:train,digits:test"),
        (["--to", "digits:train,"], "there is no source after the comma"),
        (["--to", "tfds:cifar10/train"], "name what to test on, --to tfds:cifar10/train,TEST"),
        (["--to", "digits:train,digits:test", "--to", "digits:train,digits:test"], "--to names digits-train twice"),
        (["--to", "digits:train,digits:test", "--lr", "fast"], "--lr fast: expected numbers like"),
        (["--to", "digits:train,digits:test", "--lr=-1"], "rates must be above 0"),
        (["--to", "digits:train,digits:test", "--per-class", "5,a"], "--per-class 5,a: expected numbers like 1,5,10"),
        (
            ["--to", "digits:train,digits:test", "--per-class", "1,5"],
            "of fewer than 5 images a class none are held",
        ),
        (["--to", "digits:train,digits:test", "--freeze", "1"], "--freeze is 1.0: it is a share of the steps"),
        (["--to", "digits:train,digits:test", "--seeds", "0"], "--seeds is 0: it must be at least 1"),
        (["--to", "digits:all?part=0:50%,digits:test"], "of which none is held out to choose a rate by: give one, as"),
        (["--to", "digits:train,fake:20x8"], "the classes of fake:20x8 are not those of the training data"),
    ],
)
def test_bad_flags_are_named(workdir, tmp_path, flags, words):
    with pytest.raises(UserError) as caught:
        transfer(["--from", str(workdir), "--out", str(tmp_path), *flags])
    assert words in str(caught.value)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("pretrained")
    fit(path, steps=8, evals=dict())
    return path


def test_a_checkpoint_on_few_digits(workdir, tmp_path, capsys):
    """Frozen, fine-tuned and from scratch; a second call does no training again and says the same."""
    flags = ["--from", str(workdir), "--to", "digits:train?per_class=5,digits:test", "--out", str(tmp_path),
             "--seeds", "1", "--steps", "3", "--batch-size", "40", "--lr", "0.001,0.01"]  # fmt: skip
    first = transfer(flags)
    row = first["results"]["digits-train"]
    assert list(row) == list(HOW)
    assert all(0.05 < value <= 1 for value in row.values())
    said = capsys.readouterr().out
    assert "fine-tuned: of lr 0.001" in said
    kept = json.loads((tmp_path / "transfer.json").read_text())["results"]["digits-train"]
    assert [len(kept[how]) for how in HOW] == [1, 1, 1, 1]
    assert (tmp_path / "transfer.png").stat().st_size > 1000
    before = {p: p.stat().st_mtime for p in tmp_path.rglob("checkpoints/*/digests.json")}
    assert len(before) == 6  # two rates and a seed, twice
    configs = {how: json.loads((tmp_path / "digits-train" / how / "seed-0" / "config.json").read_text())
               for how in ("fine-tuned", "from-scratch")}  # fmt: skip
    assert configs["fine-tuned"]["optim"]["unfreeze_share"] == [["^model/(?!fc(/|$))", 0.5]]
    assert configs["from-scratch"]["optim"]["unfreeze_share"] == []
    assert transfer(flags) == first
    assert before == {p: p.stat().st_mtime for p in tmp_path.rglob("checkpoints/*/digests.json")}


@pytest.mark.slow
def test_few_of_each_class_are_others_for_each_seed(workdir, tmp_path, capsys):
    flags = ["--from", str(workdir), "--to", "digits:train,digits:test", "--out", str(tmp_path), "--lr", "0.001",
             "--seeds", "2", "--steps", "1", "--batch-size", "8", "--per-class", "1,2"]  # fmt: skip
    assert list(transfer(flags)["results"]) == ["digits-train-1-a-class", "digits-train-2-a-class"]
    assert "±" in capsys.readouterr().out
    kept = json.loads((tmp_path / "transfer.json").read_text())["results"]["digits-train-1-a-class"]
    assert [len(kept[how]) for how in HOW] == [2, 2, 2, 2]
    assert kept["probe"][0] != kept["probe"][1]
    config = json.loads((tmp_path / "digits-train-2-a-class/fine-tuned/seed-1/config.json").read_text())
    assert config["data"]["train"] == "digits:train?per_class=2&seed=1"


def test_the_table_has_mean_and_deviation_over_seeds():
    results = {"a": {"knn": [0.5], "probe": [0.6], "fine-tuned": [0.7, 0.9], "from scratch": [0.1, 0.3]}}
    line = table(results).splitlines()[1]
    assert line.split() == ["a", "0.5000", "0.6000", "0.8000", "±", "0.1414", "0.2000", "±", "0.1414"]
