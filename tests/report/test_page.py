"""report.html: its numbers, what it shows of runs of every kind, and that it is one file which needs nothing else."""

import html.parser
import json
import re

import numpy as np
import pytest
import sklearn.metrics
from etils import epath
from PIL import Image

from jaxvision import config as config_lib
from jaxvision import targets
from jaxvision.data import reader
from jaxvision.data.sources import open_source
from jaxvision.errors import UserError
from jaxvision.report import analysis, draw, page, style, training
from jaxvision.runtime import paths
from jaxvision.runtime.records import SUMMARY
from jaxvision.training.setup import Setup
from tests.conftest import ROOT

# --------------------------------------------------------------------------- numbers


def test_calibration_by_hand():
    """In 5 bins: 0.1 and 0.2 in the first (its upper edge is its own), 0.9 and 1 in the last, one in the third."""
    found = analysis.calibration(np.array([0.1, 0.2, 0.9, 1.0, 0.5]), np.array([0, 1, 1, 1, 0], bool), bins=5)
    np.testing.assert_array_equal(found.samples, [2, 0, 1, 0, 2])
    np.testing.assert_allclose(found.confidence, [0.15, np.nan, 0.5, np.nan, 0.95])
    np.testing.assert_allclose(found.accuracy, [0.5, np.nan, 0, np.nan, 1])
    assert found.ece == pytest.approx(2 / 5 * 0.35 + 1 / 5 * 0.5 + 2 / 5 * 0.05)


def test_calibration_leaves_out_nan_and_says_so():
    found = analysis.calibration(np.array([0.75, np.nan]), np.array([True, True]))
    assert (found.left_out, found.samples.sum()) == (1, 1)
    assert found.ece == pytest.approx(0.25)
    assert np.isnan(analysis.calibration(np.array([np.nan]), np.array([True])).ece)


def test_confusion_precision_recall_and_f1_are_scikit_learns():
    rng = np.random.default_rng(0)
    label, predicted = rng.integers(0, 7, 200), rng.integers(0, 7, 200)
    label[label == 3], predicted[predicted == 5] = 4, 6  # a class without samples, one that is never predicted
    counts = analysis.confusion(label.astype(np.int32), predicted.astype(np.int32), 7)
    np.testing.assert_array_equal(counts, sklearn.metrics.confusion_matrix(label, predicted, labels=range(7)))
    each = analysis.per_class(counts)
    precision, recall, f1, samples = sklearn.metrics.precision_recall_fscore_support(
        label, predicted, labels=range(7), zero_division=np.nan
    )
    for mine, theirs in ((each.precision, precision), (each.recall, recall), (each.samples, samples)):
        np.testing.assert_allclose(mine, theirs)
    np.testing.assert_allclose(each.f1[each.samples > 0], f1[each.samples > 0])


def test_confusions_and_what_a_class_is_most_confused_with():
    counts = np.array([[5, 2, 0], [0, 9, 0], [1, 3, 2]])
    each = analysis.per_class(counts)
    assert each.other.tolist() == [1, -1, 1]
    assert each.mistaken.tolist() == [2, 0, 3]
    assert analysis.confusions(counts, 2) == [(2, 1, 3), (0, 1, 2)]
    assert analysis.confusions(counts, 99) == [(2, 1, 3), (0, 1, 2), (2, 0, 1)]
    np.testing.assert_array_equal(analysis.coarse(counts, 2), [[16, 0], [4, 2]])


def test_worst_and_best_in_order_and_none_in_both():
    worst, best = analysis.extremes(np.array([0.5, np.nan, 0.1, 0.9, 0.7]), 2)
    assert worst.tolist() == [1, 2]
    assert best.tolist() == [3, 4]
    worst, best = analysis.extremes(np.array([0.5, 0.1, 0.9]), 16)
    assert (worst.tolist(), best.tolist()) == ([1, 0], [2])


def test_loss_of_tags():
    found = analysis.tag_loss(np.array([[0.5, 0.25], [1.0, 0.0]]), np.array([[True, False], [True, False]]))
    assert found[0] == pytest.approx((np.log(2) - np.log(0.75)) / 2)
    assert found[1] < 1e-3


def test_tags_that_are_unknown_are_neither_there_nor_not(tmp_path):
    scores = np.array([[0.5, 0.25], [1.0, 0.1], [0.5, 0.5]])
    known = np.array([[True, False], [True, True], [False, False]])
    found = analysis.tag_loss(scores, np.array([[True, False], [True, False], [False, False]]), known)
    np.testing.assert_allclose(found, [np.log(2), (-np.log(1 - 1e-4) - np.log(0.9)) / 2, 0], rtol=1e-6)

    (tmp_path / "x.csv").write_text("image,cat,dog\na.png,1,\nb.png,0,1\nc.png,0,0\nd.png,,\n")
    source = open_source(f"csv:{tmp_path}/x.csv?kind=tags")
    said = re.sub("<[^>]+>", " ", "".join(training._labels(source)))
    assert "1 of them have no tag. 3 tags are unknown; shares are of those that are known." in said
    assert re.search(r"cat\s+1\s+33\.3\s?%\s+dog\s+1\s+50\.0\s?%", said), said
    told = [targets.tags.words(source.classes, {"label": row}) for row in source.labels]
    assert told == ["cat (unknown: dog)", "dog", "no tag", "no tag (unknown: cat, dog)"]


def test_ticks():
    assert draw.ticks(0, 100) == [0, 20, 40, 60, 80, 100]
    assert draw.ticks(0.13, 0.42) == pytest.approx([0.2, 0.3, 0.4])
    assert draw.log_ticks(0.3, 3) == pytest.approx([0.5, 1, 2])
    assert [draw.short(v) for v in (0.5, 400, 20_000, 1.5e6)] == ["0.5", "400", "20k", "1.5M"]


def test_text_is_escaped_and_markup_is_not():
    assert draw.tag("p", '<b>"', draw.Html("<i>")) == "<p>&lt;b&gt;&quot;<i></p>"
    assert draw.tag("p", title='"><script>') == '<p title="&quot;&gt;&lt;script&gt;"></p>'


def test_a_long_line_is_thinned_and_constants_are_drawn():
    steps = list(range(5000))
    drawn = draw.lines("loss", {"train": (steps, [1.0] * 5000)}, {"train": 0}, log=True)
    assert draw.LINE_POINTS - 2 <= drawn.split('points="')[1].split('"')[0].count(",") <= draw.LINE_POINTS
    assert "nan" not in drawn


# --------------------------------------------------------------------------- pages

HOSTILE = ("<script>alert(1)", '"><img src=x onerror=alert(2)>', "a&amp;b")
CONFIG = """
from tests.tiny import make_tiny_config
config = make_tiny_config()
config.batch_size, config.steps = 16, 4
config.log.every_steps = 2
"""


class Page(html.parser.HTMLParser):
    """The elements of a page, and its text."""

    def __init__(self, content):
        super().__init__()
        self.elements, self.text, self.open = [], [], []
        self.feed(content)
        self.said = " ".join(" ".join(self.text).split())

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag in ("style", "script"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_data(self, data):
        if not self.open:
            self.text.append(data)

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def read(path):
    """The page, after the checks that every report must pass."""
    content = path.read_text()
    found = Page(content)
    assert "://" not in content  # neither loaded nor linked
    assert len(found.of("script")) == len(found.of("style")) == 1
    assert not {"iframe", "link", "object", "base", "form"} & {name for name, _ in found.elements}
    for _, attributes in found.elements:
        assert not [key for key in attributes if key.startswith("on")]
        assert attributes.get("src", "data:image/").startswith("data:image/")
        assert "href" not in attributes
    assert "nan" not in found.said.split()
    assert len(content) < 1_000_000
    return found


@pytest.fixture(scope="module")
def finished(command, tmp_path_factory):
    """The workdir of a run on images whose names are markup, one of them unreadable."""
    folder = tmp_path_factory.mktemp("report")
    rng = np.random.default_rng(0)
    for name in HOSTILE:
        (folder / "photos" / name).mkdir(parents=True)
        for k in range(16):
            pixels = rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / name / f"<b>{k}.png")
    (folder / "photos" / HOSTILE[0] / "<u>bad.png").write_bytes(b"nothing")
    more = (
        f"config.data.train = 'folder:{folder}/photos'\nconfig.data.update(on_error='skip', skip_at_most=0.1)\n"
        f"config.evals.test.data = 'folder:{folder}/photos'\n"
    )
    (folder / "hostile.py").write_text(CONFIG + more)
    done = command("jaxvision.train", "--config", folder / "hostile.py", "--workdir", folder / "w<i>",
                   PYTHONPATH=str(ROOT))  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "warning: no report" not in done.stdout
    assert "report.html" in done.stdout
    return folder / "w<i>"


def test_a_finished_run(finished):
    found = read(finished / "report.html")
    summary = json.loads((finished / "summary.json").read_text())
    assert "w<i> done" in found.said
    assert f"{summary['parameters']:,}" in found.said
    assert f"{summary['evals']['test']['top1']:.4g} test: top1" in found.said
    for name in HOSTILE:
        assert name in found.said
    for word in ("Curves", "Confusion", "Calibration", "ECE, 15 bins", "Worst 16", "Best 16", "most confused with",
                 "Goodput", "Evaluation certificates", "optim.lr"):  # fmt: skip
        assert word in found.said
    assert "1 unreadable images were left out of training" in found.said
    assert "1 unreadable images were left out of test" in found.said
    assert "<u>bad.png" in found.said
    assert len(found.of("img")) == 32 + training.SHOWN
    assert json.loads((finished / "eval" / "test.json").read_text())["digest_of_sample_ids"] in found.said


def test_outcomes_are_those_of_the_metric_and_of_their_samples(finished):
    certificate = json.loads((finished / "eval" / "test.json").read_text())
    outcomes = dict(np.load(finished / "eval" / "test.npz"))
    source = open_source(certificate["data"])
    assert len(outcomes["label"]) == 48 == len(source) - 1
    top1 = np.mean(outcomes["top"][:, 0] == outcomes["label"])
    assert top1 == pytest.approx(certificate["metrics"]["top1"])
    right = outcomes["top_p"][outcomes["top"] == outcomes["label"][:, None]]
    np.testing.assert_array_equal(right, outcomes["p"])  # all 3 classes are among the top
    np.testing.assert_allclose(-np.log(outcomes["p"]).mean(), certificate["metrics"]["loss"], rtol=1e-5)
    for row in (0, 1, 47):  # the unreadable one is among the first
        sample = source[int(outcomes["place"][row])]
        assert (sample["index"], sample["label"]) == (outcomes["index"][row], outcomes["label"][row])


def test_worst_come_first_with_their_classes(finished):
    outcomes = dict(np.load(finished / "eval" / "test.npz"))
    found = read(finished / "report.html")
    cards = [attributes["title"] for attributes in found.of("div") if attributes.get("class") == "card"]
    cards = cards[training.SHOWN :]
    source = open_source(f"folder:{finished.parent}/photos")
    order = np.argsort(outcomes["p"], kind="stable")
    want = [*order[:16], *order[::-1][:16]]
    assert cards == [source.where(int(outcomes["place"][row])) for row in want]


def test_the_command_writes_it_anew(command, finished, tmp_path):
    before = (finished / "report.html").read_bytes()
    done = command("jaxvision.report", finished, "--out", tmp_path / "a.html", "--json", process=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"report": str(tmp_path / "a.html"), "bytes": len(before)}
    assert (tmp_path / "a.html").read_bytes() == before


def copied(finished, tmp_path):
    """The workdir without what is large, to be spoilt."""
    for name in ("config.json", "summary.json", "metrics.jsonl", "eval/test.json", "eval/test.npz"):
        target = tmp_path / "w" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((finished / name).read_bytes())
    return epath.Path(tmp_path / "w")


def edit(path, **changes):
    paths.write_json(epath.Path(path), {**paths.read_json(epath.Path(path)), **changes})


def test_what_is_not_there_any_more_is_said(finished, tmp_path):
    workdir = copied(finished, tmp_path)
    edit(workdir / "eval" / "test.json", data="folder:/nowhere/at/all")
    page.write(workdir)
    found = read(workdir / "report.html")
    assert len(found.of("img")) == training.SHOWN
    assert "No pictures: folder:/nowhere/at/all is not what was evaluated, or not there any more (" in found.said
    assert "Calibration" in found.said

    edit(workdir / "eval" / "test.json", data="digits:test")  # other data under the same name
    page.write(workdir)
    assert "No pictures: digits:test is not what was evaluated" in read(workdir / "report.html").said

    edit(workdir / "eval" / "test.json", step=3)
    page.write(workdir)
    assert "eval/test.npz is of another evaluation than eval/test.json" in read(workdir / "report.html").said

    config = json.loads((workdir / "config.json").read_text())
    edit(workdir / "config.json", data={**config["data"], "train": "folder:/nowhere"})
    page.write(workdir)
    found = read(workdir / "report.html")
    assert "folder:/nowhere is not what was trained on, or not there any more (" in found.said
    assert not found.of("img")

    (workdir / "eval" / "test.npz").write_bytes(b"nothing")
    page.write(workdir)
    assert "test.npz is damaged, or of another evaluation" in read(workdir / "report.html").said

    edit(workdir / "eval" / "test.json", files={})  # as older versions wrote it
    page.write(workdir)
    assert "test.npz cannot be read (" in read(workdir / "report.html").said

    for file in ("eval/test.npz", "eval/test.json", "summary.json", "metrics.jsonl"):
        (workdir / file).unlink()
    page.write(workdir)
    found = read(workdir / "report.html")
    for word in ("no summary.json", "Nothing was evaluated", "No line of the log was written", "optim.lr"):
        assert word in found.said


def test_a_summary_of_an_older_version_may_lack_any_key(finished):
    whole = page._read(epath.Path(finished), print)
    missing = [{key.removesuffix("?")} for key in SUMMARY] + [set(whole.summary)]
    for keys in missing:
        run = whole._replace(summary={k: v for k, v in whole.summary.items() if k not in keys})
        for section in (page._head, page._warnings, page._results, page._time):
            assert isinstance(section(run), str), keys


def test_alarms_and_a_divergence_are_prominent(finished, tmp_path):
    workdir = copied(finished, tmp_path)
    edit(workdir / "summary.json", status="diverged", alarms={"collapse<b>": 2})
    page.write(workdir)
    found = read(workdir / "report.html")
    assert "diverged" in found.said
    assert "collapse<b> was raised, first at step 2" in found.said
    assert {"class": "badge bad"} in found.of("span")


def test_what_is_no_workdir(command, tmp_path):
    for folder, words in ((tmp_path, "is no workdir, it has no config.json"), (tmp_path / "absent", "does not exist")):
        done = command("jaxvision.report", folder)
        assert done.returncode == 2
        assert f"error: {folder} {words}" in done.stderr
        assert "name the --workdir of a training" in done.stderr
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config.json is damaged"):
        page.write(epath.Path(tmp_path))
    (tmp_path / "config.json").write_text('{"architectures": ["ViT"]}')
    with pytest.raises(UserError, match=r"config.json is of something else"):
        page.write(epath.Path(tmp_path))


def run(command, folder, more, *arguments):
    (folder / "config.py").write_text(CONFIG + more)
    return command("jaxvision.train", "--config", folder / "config.py", "--workdir", folder / "w", *arguments,
                   PYTHONPATH=str(ROOT))  # fmt: skip


def test_an_interrupted_run_and_what_comes_of_it(command, tmp_path):
    done = run(command, tmp_path, "config.steps = 6\n", "--stop-after", "0.00001")
    assert done.returncode == 75, done.stderr
    found = read(tmp_path / "w" / "report.html")
    assert "w interrupted" in found.said
    assert "1 of 6" in found.said  # the time was over at once, and one step is done at least
    done = run(command, tmp_path, "config.steps = 6\n")
    assert done.returncode == 0, done.stderr
    found = read(tmp_path / "w" / "report.html")
    assert "w done" in found.said
    assert "6 of 6" in found.said
    assert len(found.of("img")) == 32 + training.SHOWN
    assert "digits:test, 360 samples, step 6" in found.said


def test_a_run_without_labels(command, tmp_path):
    more = (
        "config.data.transforms = (('multi_view', dict(views=((('shift', dict(share=0.2)),), ()))),)\n"
        "config.task = dict(name='simclr', widths=(16, 8))\n"
        "config.evals = dict(knn=dict(metric='knn', data='digits:test', bank='digits:test', every_epochs=0))\n"
    )
    done = run(command, tmp_path, more)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "w" / "eval" / "knn.npz").exists()
    found = read(tmp_path / "w" / "report.html")
    assert "knn: knn" in found.said
    assert "Goodput" in found.said
    assert len(found.of("img")) == 1 + 2 * training.SHOWN  # the features on two components, both views of each sample
    for word in ("Confusion", "Calibration", "Worst"):
        assert word not in found.said


@pytest.mark.parametrize("kind", ["values", "tags"])
def test_other_kinds_of_labels(command, tmp_path, kind):
    rows = {"values": ["path,weight,<b>height", "{},{}.5,2"], "tags": ["path,label", "{},<u>dark,tall"]}[kind]
    lines = [rows[0]]
    for k in range(32):
        Image.new("RGB", (8, 8), (k * 8, 0, 0)).save(tmp_path / f"{k}.png")
        lines.append(rows[1].format(f"{k}.png", k) if k % 2 or kind == "values" else f"{k}.png,")
    (tmp_path / "table.csv").write_text("\n".join(lines) + "\n")
    uri = f"csv:{tmp_path}/table.csv?kind={kind}"
    name = {"values": "regression", "tags": "multilabel"}[kind]
    more = (
        f"config.data.update(train={uri!r}, transforms=())\nconfig.task = dict(name={name!r})\n"
        f"config.evals = dict(test=dict(metric={name!r}, data={uri!r}, every_epochs=0))\n"
    )
    done = run(command, tmp_path, more)
    assert done.returncode == 0, done.stderr
    found = read(tmp_path / "w" / "report.html")
    outcomes = dict(np.load(tmp_path / "w" / "eval" / "test.npz"))
    metrics = json.loads((tmp_path / "w" / "eval" / "test.json").read_text())["metrics"]
    assert len(found.of("img")) == 32 + training.SHOWN
    assert "Confusion" not in found.said
    if kind == "values":
        error = outcomes["values"].astype(float) - outcomes["label"]
        assert np.abs(error).mean() == pytest.approx(metrics["mae"], rel=1e-6)
        for word in ("<b>height: residuals", "root mean square error", "standard deviations of the labels",
                     "weight 16 9.233 0.5 31.5"):  # fmt: skip
            assert word in found.said
    else:
        assert f"<u>dark 16 {metrics['ap/<u>dark']:.4g}" in found.said
        assert "by the binary cross-entropy of their tags" in found.said
        assert outcomes["label"].sum() == 32
        assert "16 of them have no tag. tag samples share <u>dark 16 50.0% tall 16 50.0%" in found.said


def test_tags_are_right_or_wrong_one_by_one(finished, tmp_path):
    """A sample of which one tag is found, one is missed and one is said wrongly is not wrong as a whole."""
    workdir = copied(finished, tmp_path)
    label, scores = np.array([[1, 1, 0], [0, 0, 0]], bool), np.array([[0.9, 0.2, 0.7], [0.1, 0.2, 0.3]], np.float32)
    rows = dict(index=np.arange(2), place=np.arange(2), label=label, scores=scores)
    np.savez(workdir / "eval" / "test.npz", step=4, digest="ab", **rows)
    edit(workdir / "eval" / "test.json", digest_of_sample_ids="ab", data="fake:2x8", classes=["cat", "dog", "owl"],
         files={})  # fmt: skip
    page.write(workdir)
    found = read(workdir / "report.html")
    assert "found: cat 0.90 wrongly said: owl 0.70 missed: dog 0.20" in found.said
    assert "no tag, rightly" in found.said
    content = (workdir / "report.html").read_text()
    assert '<span class="right">cat 0.90</span>' in content
    for wrong in ("owl 0.70", "dog 0.20"):
        assert f'<span class="wrong">{wrong}</span>' in content


def test_counts_of_tags_of_which_some_are_unknown(tmp_path):
    rows = ["path,cat,dog", "a.png,1,0", "b.png,0,0", "c.png,1,", "d.png,0,1"]
    (tmp_path / "t.csv").write_text("\n".join(rows) + "\n")
    listed = Page(draw.join(training._labels(open_source(f"csv:{tmp_path}/t.csv?kind=tags")))).said
    assert "1 of them have no tag. 1 tags are unknown; shares are of those that are known." in listed
    assert "cat 2 50.0% dog 1 33.3%" in listed


def test_the_training_data_as_training_saw_it(finished):
    """Counts of the classes, and the pixels of the first batch, from the pipeline that training reads."""
    found = read(finished / "report.html")
    rows = " ".join(f"{name} {n} {n / 49:.1%}" for name, n in zip(sorted(HOSTILE), (16, 17, 16), strict=True))
    assert f"class samples share {rows}" in found.said
    config = config_lib.from_json((finished / "config.json").read_text())
    setup = Setup(config)
    (batch,) = setup.reader(0, 1, reader.skips(config))
    content = (finished / "report.html").read_text()
    for row in range(training.SHOWN):
        assert draw.picture(batch["image"][row]) in content


def test_the_command_that_ran_and_the_keys_that_differ_come_first(finished):
    found = read(finished / "report.html")
    command = f"python -m jaxvision.train --config {finished.parent}/hostile.py --workdir '{finished}'"
    assert command in found.said
    assert json.loads((finished / "summary.json").read_text())["command"] == command
    before, folded = found.said.split("keys that are as the defaults")
    for key in ("batch_size 16 128", "optim.lr 0.05 0.1", "model.name"):
        assert key in before
    assert "optim.warmup_share 0.0" in folded
    assert "optim.warmup" not in before
    assert len(found.of("details")) == len(found.of("summary")) == 1


def test_names_of_files_are_read_without_hovering(finished):
    found = read(finished / "report.html")
    outcomes = dict(np.load(finished / "eval" / "test.npz"))
    source = open_source(f"folder:{finished.parent}/photos")
    worst = source.where(int(outcomes["place"][np.argsort(outcomes["p"], kind="stable")[0]]))
    assert worst.rpartition("/")[2] in found.said


def test_text_of_charts_is_not_tiny_and_wide_tables_say_so(finished):
    """A chart is at least as wide as its column; each table is in a box that scrolls and that the script marks."""
    (column,) = re.findall(r"\.grid \{[^}]*min\((\d+)px", style.CSS)
    (size,) = re.findall(r"svg text \{ font-size: (\d+)px", style.CSS)
    assert int(size) * int(column) / draw.WIDTH >= 11
    content = (finished / "report.html").read_text()
    assert content.count("<table") == content.count('<div class="scroll"><table')
    for name in ("across", "more"):
        assert f".scroll.{name}" in style.CSS
        assert f"'{name}'" in style.SCRIPT


def test_a_thousand_classes_fit(finished, tmp_path):
    """The confusion matrix is coarse, the report stays small."""
    workdir, classes = copied(finished, tmp_path), 1000
    rng = np.random.default_rng(0)
    label = np.repeat(np.arange(classes, dtype=np.int32), 5)
    top = np.stack([label, *rng.integers(0, classes, (4, len(label)))], 1).astype(np.int32)
    top[: len(label) // 4, 0] = top[: len(label) // 4, 1]
    p = rng.random((len(label), 5)).astype(np.float32)
    np.savez(
        workdir / "eval" / "test.npz", step=4, digest="ab", label=label, top=top, top_p=-np.sort(-p), p=p[:, 0],
        index=np.arange(len(label)), place=np.arange(len(label)),
    )  # fmt: skip
    edit(workdir / "eval" / "test.json", digest_of_sample_ids="ab", data="gone:x", count=len(label),
         classes=[f"class {k}" for k in range(classes)], files={})  # fmt: skip
    page.write(workdir)
    found = read(workdir / "report.html")
    assert "class 999" in found.said
    assert "taken for" in found.said
    assert len(found.of("img")) == 1 + training.SHOWN  # the coarse matrix
    assert len((workdir / "report.html").read_bytes()) < 500_000


def test_a_report_that_cannot_be_written_is_a_warning(finished, tmp_path, monkeypatch):
    from jaxvision.training import loop
    from tests.tiny import make_tiny_config

    def full(*arguments, **options):
        raise OSError("no space left")

    monkeypatch.setattr(page, "write_whole", full)
    config, said = make_tiny_config(), []
    config.steps, config.evals = 2, {}
    loop.fit(config, tmp_path / "w", say=said.append)
    assert "warning: no report was written (OSError: no space left)" in said
    assert json.loads((tmp_path / "w" / "summary.json").read_text())["status"] == "done"
