"""Evaluations of data that lack some of the network's classes, or name them in another order."""

import json
import os
import shutil

import numpy as np
import pytest
from etils import epath
from PIL import Image
from scipy.special import log_softmax

from jaxvision import config
from jaxvision.data.sources import Folder, open_source
from jaxvision.deploy import exporting, verifying
from jaxvision.errors import UserError
from jaxvision.metrics.representation import knn
from jaxvision.report import page
from jaxvision.task import Metric
from jaxvision.training import build, check, evals, restore, transfer
from tests.training.test_loop import fit, summary
from tests.weights.test_published import run

ABSENT = ("3", "7")
PRESENT = tuple(name for name in "0123456789" if name not in ABSENT)
ROWS = Metric(lambda p, b: {"logits": p["logits"], "features": p["features"]}, lambda rows: {}, gather=True)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """`train` has 8 images of each digit, `val` 6 of eight digits, `odd` a class of its own."""
    folder = tmp_path_factory.mktemp("photos")
    for name, uri, each in (("train", "digits:train", 8), ("val", "digits:test", 6)):
        source = open_source(uri)
        for c in range(10):
            (folder / name / f"{c}").mkdir(parents=True)
            for i in np.flatnonzero(source.labels == c)[:each]:
                Image.fromarray(source[i]["image"].squeeze()).save(folder / name / f"{c}" / f"{i}.png")
    for name in ABSENT:
        shutil.rmtree(folder / "val" / name)
    shutil.copytree(folder / "val", folder / "odd")
    (folder / "odd" / "1").rename(folder / "odd" / "one")
    return folder


@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory):
    """(workdir, what was said) of a training whose evaluations lack two classes."""
    val, train = f"folder:{photos}/val", f"folder:{photos}/train"
    often = dict(every_epochs=0, every_steps=30)
    some = dict(
        val=dict(data=val, **often),
        each=dict(data=val, metric="per_class", **often),
        subset=dict(data=val, classes="subset", **often),
        near=dict(data=train, bank=val, metric="knn", **often),
    )
    workdir = tmp_path_factory.mktemp("some")
    _, said = fit(workdir, data__train=train, evals=some, checkpoint__best="val", batch_size=16, steps=30)
    return workdir, said


@pytest.fixture(scope="module")
def answers(trained, photos):
    """(the name of each sample's folder, its logits, its features) of the samples of `val`, in order."""
    network, source = restore.load(str(trained[0])), open_source(f"folder:{photos}/val")
    kept = []
    rows = ROWS._replace(finish=lambda rows: (kept.append(rows), {})[1])
    batches = evals.source_batches(source, network.contract, network.mesh, 64)
    evals.run(network.task, network, {"rows": rows}, batches)
    folders = [epath.Path(source.where(i)).parent.name for i in range(len(source))]
    return np.array(folders), kept[0]["logits"].astype(np.float64), kept[0]["features"]


def certificate(workdir, name):
    content = json.loads((workdir / "eval" / f"{name}.json").read_text())
    with np.load(workdir / "eval" / f"{name}.npz") as file:
        return content, dict(file)


def test_labels_are_the_networks_classes_by_name(trained, answers):
    folders, logits, _ = answers
    content, rows = certificate(trained[0], "val")
    assert [content["classes"][k] for k in rows["label"]] == folders.tolist()
    assert content["classes"] == list("0123456789")
    assert content["classes_absent"] == list(ABSENT)
    labels = folders.astype(int)
    assert content["metrics"]["top1"] == pytest.approx(np.mean(logits.argmax(-1) == labels))
    loss = -log_softmax(logits, -1)[np.arange(len(labels)), labels].mean()
    assert content["metrics"]["loss"] == pytest.approx(loss, rel=1e-5)


def test_means_over_classes_are_over_those_that_are_there(trained, answers):
    folders, logits, _ = answers
    found = summary(trained[0])["evals"]["each"]
    right = np.array(list("0123456789"))[logits.argmax(-1)] == folders
    want = {f"accuracy/{name}": right[folders == name].mean() for name in PRESENT}
    assert {k: v for k, v in found.items() if k.startswith("accuracy/")} == pytest.approx(want)
    assert found["balanced_accuracy"] == pytest.approx(np.mean(list(want.values())))
    assert found["absent_classes"] == 2


def test_a_subset_of_the_classes_is_all_that_is_answered(trained, answers):
    folders, logits, _ = answers
    content, rows = certificate(trained[0], "subset")
    assert content["classes"] == list(PRESENT)
    assert content["metric"]["classes"] == "subset"
    some = logits[:, [int(name) for name in PRESENT]]
    answer = np.array(PRESENT)[some.argmax(-1)]
    np.testing.assert_array_equal(np.array(PRESENT)[rows["top"][:, 0]], answer)
    np.testing.assert_array_equal(np.array(PRESENT)[rows["label"]], folders)
    np.testing.assert_allclose(rows["top_p"][:, 0], np.exp(log_softmax(some, -1).max(-1)), rtol=1e-5)
    assert content["metrics"]["top1"] == pytest.approx(np.mean(answer == folders))
    assert (logits.argmax(-1) != np.array(PRESENT, int)[some.argmax(-1)]).any()  # else this test shows nothing


def test_a_bank_may_lack_classes(trained, photos, answers):
    """What the bank does not know is never right; the others are compared by name."""
    network, source = restore.load(str(trained[0])), open_source(f"folder:{photos}/train")
    kept = []
    rows = ROWS._replace(finish=lambda rows: (kept.append(rows), {})[1])
    evals.run(network.task, network, {"rows": rows}, evals.source_batches(source, network.contract, network.mesh, 64))
    query = {"features": kept[0]["features"], "label": source.labels}
    bank = {"features": answers[2], "label": answers[0].astype(int)}
    assert summary(trained[0])["evals"]["near"]["knn"] == pytest.approx(knn(classes=10).finish(query, bank)["knn"])


def test_what_is_unreadable_in_a_bank_is_listed(trained, photos, tmp_path):
    network = restore.load(str(trained[0]))
    network.config.data.update(on_error="skip", skip_at_most=0.5, threads=1)
    names = network.classes
    shutil.copytree(photos / "val", tmp_path / "b")
    data, bank = open_source(f"folder:{photos}/val?per_class=1"), Folder(f"{tmp_path}/b")
    (tmp_path / "b" / "1" / os.path.basename(bank.where(9))).write_bytes(b"no image")
    found = check.eval_data(network.config, "near", data, bank, names)
    measures = build.measures(network.config, "near", names, names)
    result = evals.measure(network.config, network.task, network, measures, *found, network.contract, network.mesh)
    assert result.samples == 8
    (row,) = result.skipped
    assert (row["sample"], row["bank"]) == (9, True)
    assert bank.where(9) in row["reason"]


def test_one_line_says_what_is_absent(trained):
    said = trained[1].splitlines()
    assert "evals.val has 8 of the 10 classes, and no sample of the other 2 ('3', '7')" in said
    assert "evals.near.bank has 8 of the 10 classes, and no sample of the other 2 ('3', '7')" in said
    assert "evals.subset: the answer is one of the 8 classes with samples, of the network's 10" in said
    assert not [line for line in said if line.startswith("evals.near has")]


def test_evaluate_gives_what_the_training_gave(trained, photos, tmp_path, capsys):
    where = ("--from", str(trained[0]), "--out", str(tmp_path), "--data", f"folder:{photos}/val")
    for flags, written, name in (((), "val", "val"), (("--classes", "subset"), "val-other", "subset")):
        assert run("evaluate", *where, *flags) == 0
        found = json.loads((tmp_path / "eval" / f"{written}.json").read_text())
        theirs, _ = certificate(trained[0], name)
        for key in ("metrics", "classes", "classes_absent", "digest_of_sample_ids", "count"):
            assert found[key] == theirs[key]
    assert "the answer is one of the 8 classes" in capsys.readouterr().out
    assert run("evaluate", *where[:-1], f"folder:{photos}/odd") == 2
    assert "are not those of the training data: only there: ['one']" in capsys.readouterr().err


def test_a_class_that_the_training_does_not_know_is_refused_by_name(photos, tmp_path):
    train = f"folder:{photos}/train"
    with pytest.raises(UserError, match=r"folder:\S+/odd are not those of the training data: only there: \['one'\]"):
        fit(tmp_path, data__train=train, evals=dict(test=dict(data=f"folder:{photos}/odd")))
    with pytest.raises(UserError, match=r'evals.test.classes = "subset" tells .* and metric knn measures no such'):
        fit(tmp_path, data__train=train, evals=dict(test=dict(metric="knn", data=train, bank=train, classes="subset")))
    with pytest.raises(UserError, match=r"evals\.test\.classes"):
        fit(tmp_path, data__train=train, evals=dict(test=dict(data=train, classes="some")))


@pytest.mark.parametrize(("data", "bank"), [("val", "train"), ("train", "val")])
def test_without_labels_to_learn_the_larger_list_counts(photos, data, bank):
    c = config.default()
    c.task = dict(name="rotation")
    c.evals = dict(near=dict(metric="knn", data="a", bank="b"))
    sources = [Folder(f"{photos}/{name}") for name in (data, bank)]
    found = check.eval_data(c, "near", *sources, ("anything",))
    for source, own in zip(found, sources, strict=True):
        assert source.classes == tuple("0123456789")
        names = [source.classes[k] for k in source.labels]
        assert names == [own.classes[k] for k in own.labels]
    (line,) = check.eval_lines(c, "near", *found, tuple("0123456789ab"))  # of a network that answers with no class
    assert line.endswith("has 8 of the 10 classes, and no sample of the other 2 ('3', '7')")
    with pytest.raises(UserError, match=r"only there: \['one'\]"):
        check.eval_data(c, "near", Folder(f"{photos}/val"), Folder(f"{photos}/odd"), ())


def test_a_transfer_and_an_export_go_by_names(trained, photos, capsys):
    network = restore.load(str(trained[0]))
    source = exporting._data(f"folder:{photos}/val", network, print)
    assert [source.classes[k] for k in source.labels] == [c for c in PRESENT for _ in range(6)]
    about = {"classes": list("0123456789")}
    again = verifying._with_classes_of(about, open_source(f"folder:{photos}/val"), print)
    np.testing.assert_array_equal(again.labels, source.labels)
    with pytest.raises(UserError, match=r"those of the exported network: only there: \['one'\]"):
        verifying._with_classes_of(about, open_source(f"folder:{photos}/odd"), print)

    target = transfer.DataSet("t", f"folder:{photos}/train", f"folder:{photos}/val")
    c = config.from_json((trained[0] / "config.json").read_text())
    found = transfer.frozen(restore.find(str(trained[0])), c, target, range(1))
    assert all(0 < found[how][0] <= 1 for how in ("knn", "probe"))


def test_the_report_lists_the_classes_that_are_there(trained):
    html = page.build(epath.Path(trained[0]))
    assert "Of 10 classes the data has 8." in html
    assert "Of 8 classes the data has 8." in html


def test_classes_of_other_names_count_by_their_place_in_verify_and_it_is_said():
    said = []
    source = open_source("fake:4x8?classes=2")
    assert verifying._with_classes_of({"classes": ["cat", "dog"]}, source, said.append) is source
    assert said == ["fake:4x8?classes=2 has none of the file's class names: class k is taken to be the data's class k"]
    assert verifying._with_classes_of({"classes": list(source.classes)}, source, said.append) is source
    with pytest.raises(UserError, match="not those of the exported network"):
        verifying._with_classes_of({"classes": ["cat", "dog", "fox"]}, source, said.append)
    assert len(said) == 1
