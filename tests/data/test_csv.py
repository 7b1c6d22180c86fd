"""csv: the three kinds of labels, and what it says of a wrong table."""

import csv
import io
import math
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from jaxvision import targets
from jaxvision.data import open_source
from jaxvision.data.sources.common import guarded, unguarded
from jaxvision.deploy import answers
from jaxvision.errors import Unreadable, UserError


def table(folder, text, query="", name="table.csv"):
    """The URI of a csv file with this text."""
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return f"csv:{folder / name}{query}"


def test_classes_are_sorted_and_samples_are_not(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/ü, 猫.jpg").write_bytes(b"one")
    (tmp_path / "b.jpg").write_bytes(b"two")
    source = open_source(table(tmp_path, '\ufeffFileName, label\r\n"sub/ü, 猫.jpg",dog\r\n\r\nb.jpg, cat \r\n'))
    assert (source.kind, source.classes, len(source)) == ("class", ("cat", "dog"), 2)
    assert source.labels.tolist() == [1, 0]
    assert source.labels.dtype == np.int32
    assert source[0] == {"image": b"one", "label": 1, "index": 0}
    assert source[-1] == {"image": b"two", "label": 0, "index": 1}
    assert source.where(0) == str(tmp_path / "sub/ü, 猫.jpg")
    with pytest.raises(IndexError):
        source[2]


def test_integers_sort_as_numbers_unless_one_is_none(tmp_path):
    assert open_source(table(tmp_path, "path,c\na,10\nb,9\nc,-1\n")).classes == ("-1", "9", "10")
    assert open_source(table(tmp_path, "path,c\na,10\nb,9\nc,x\n")).classes == ("10", "9", "x")


def test_a_list_pins_the_classes(tmp_path):
    (tmp_path / "classes.txt").write_text("dog\nfox\ncat\n")
    query = f"?classes={tmp_path / 'classes.txt'}"
    source = open_source(table(tmp_path, "image,c\na,cat\nb,dog\n", query))
    assert source.classes == ("dog", "fox", "cat")
    assert source.labels.tolist() == [2, 0]
    tags = open_source(table(tmp_path, "image\na\nb,cat,dog\n", query + "&kind=tags"))
    assert tags.labels.tolist() == [[0, 0, 0], [1, 0, 1]]
    with pytest.raises(UserError, match=r"table\.csv, line 2: 'cta' is not in .*classes\.txt: did you mean 'cat'"):
        open_source(table(tmp_path, "image,c\na,cta\n", query))


def test_tags_are_any_number_a_row(tmp_path):
    for name in "abcd":
        (tmp_path / name).write_bytes(name.encode())
    source = open_source(table(tmp_path, "file,tags\na,sea,sun\nb\nc,,sun,sun,\nd,ape,sea,sun\n", "?kind=tags"))
    assert (source.kind, source.classes) == ("tags", ("ape", "sea", "sun"))
    want = np.array([[0, 1, 1], [0, 0, 0], [0, 0, 1], [1, 1, 1]], np.float32)
    assert source.labels.dtype == np.float32
    assert (source.labels == want).all()
    for i in range(4):
        assert source[i]["label"].dtype == np.float32
        assert (source[i]["label"] == want[i]).all()


ONE_HOT = "image,MEL,NV,BCC\na,1.0,0.0,0.0\nb,0.0,0.0,1.0\nc,0,1,0\n"


def read(folder, text, query=""):
    source = open_source(table(folder, text, query))
    return source.kind, source.classes, source.labels.tolist()


def test_one_hot_columns_are_classes_in_the_order_of_the_header(tmp_path):
    names = ("MEL", "NV", "BCC")
    assert read(tmp_path, ONE_HOT) == read(tmp_path, ONE_HOT, "?kind=class") == ("class", names, [0, 2, 1])
    assert read(tmp_path, ONE_HOT, "?kind=tags") == ("tags", names, [[1, 0, 0], [0, 0, 1], [0, 1, 0]])
    assert open_source(table(tmp_path, ONE_HOT)).labels.dtype == np.int32
    (tmp_path / "list").write_text("NV\nBCC\nSCC\nMEL\n")
    assert read(tmp_path, ONE_HOT, f"?classes={tmp_path}/list") == ("class", ("NV", "BCC", "SCC", "MEL"), [3, 1, 0])


def test_columns_of_0_and_1_are_tags_and_empty_cells_unknown(tmp_path):
    kind, names, labels = read(tmp_path, ONE_HOT + "d,1,1,0\ne,,NaN,0\nf,0,0,0\ng,True,False,na\n")
    assert (kind, names) == ("tags", ("MEL", "NV", "BCC"))
    want = [[1, 0, 0], [0, 0, 1], [0, 1, 0], [1, 1, 0], [math.nan, math.nan, 0], [0, 0, 0], [1, 0, math.nan]]
    np.testing.assert_array_equal(labels, want)
    source = open_source(table(tmp_path, "image,cat,dog\na,,1\n", "?kind=tags"))
    (tmp_path / "a").write_bytes(b"x")
    np.testing.assert_array_equal(source[0]["label"], np.array([np.nan, 1], np.float32))
    assert source.labels.dtype == source[0]["label"].dtype == np.float32
    assert read(tmp_path, "image,cat\na,1\nb,0\n", "?kind=tags") == ("tags", ("cat",), [[1], [0]])
    (tmp_path / "list").write_text("NV\nBCC\nMEL\n")
    rows = read(tmp_path, ONE_HOT, f"?kind=tags&classes={tmp_path}/list")
    assert rows == ("tags", ("NV", "BCC", "MEL"), [[0, 0, 1], [0, 1, 0], [1, 0, 0]])


@pytest.mark.parametrize(
    ("cell", "sep"), [("cat dog", "space"), ("cat;dog", ";"), ('"cat,dog"', "comma"), ("cat|dog", "|")]
)
def test_tags_in_one_cell(tmp_path, cell, sep):
    text = f"image,tags\na.png,{cell}\nb.png,cat\nc.png,dog\n"
    assert read(tmp_path, text, f"?sep={sep}") == ("tags", ("cat", "dog"), [[1, 1], [1, 0], [0, 1]])
    assert read(tmp_path, text + "d.png,\n", f"?sep={sep}&kind=tags")[2][3] == [0, 0]
    with pytest.raises(UserError, match=r"line 2 has 'cat.dog'.* sep=\w+ \(the tags 'cat' and 'dog'\) or sep=none"):
        read(tmp_path, text, "?kind=tags")
    with pytest.raises(UserError, match=r"line 2 has 'cat.dog'.* kind=tags&sep=\w+ .* or kind=class"):
        read(tmp_path, text)
    three = tuple(sorted((cell.strip('"'), "cat", "dog")))
    assert read(tmp_path, text, "?sep=none")[:2] == ("tags", three)
    assert read(tmp_path, text, "?kind=class")[:2] == ("class", three)


FORMULAS = ("=1+1", "+cmd", "-2+3", "@SUM(A1)", "\tx", "\rx", "\nx", "\uff1dx", "'=x")


@given(st.text(max_size=8) | st.sampled_from(FORMULAS))
def test_guarding_a_cell_loses_nothing(text):
    assert unguarded(guarded(text)) == text
    assert guarded(text) in (text, f"'{text}")


def test_what_a_spreadsheet_would_run_is_guarded_and_numbers_are_not():
    assert [guarded(text) for text in FORMULAS] == [f"'{text}" for text in FORMULAS]
    for text in ("-1", "+1.5", "-2e-05", "-", "a=b", "it's", "'quoted'", "cat", ""):
        assert guarded(text) == text


def telling(kind, classes):
    """What a table asks of a Predictor."""
    return SimpleNamespace(target=targets.find(kind), classes=classes)


def options(kind, top):
    return {"top": top} if "top" in targets.find(kind).options else {}


def test_a_table_of_predictions_holds_no_formula(tmp_path):
    """Of names that are formulas, in every place that holds names; and csv: reads them as they were."""
    classes = tuple(name for name in FORMULAS if name.isprintable())
    for kind, row in (
        ("class", {"predictions": [{"class": c, "probability": 0.5} for c in classes[:2]]}),
        ("tags", {"predictions": [{"class": c, "probability": 0.5} for c in classes]}),
        ("values", {"values": dict.fromkeys(classes, -0.5)}),
    ):
        file = io.StringIO()
        answers.table(file, "t.csv", telling(kind, classes), options(kind, 2), False)({"image": "=a.png", **row})
        for line in csv.reader(file.getvalue().splitlines()):
            for cell in line:
                assert cell[0] not in "=+@\uff1d"
                assert cell[0] != "-" or cell == "-0.5"
        source = open_source(table(tmp_path, file.getvalue(), "?kind=values" if kind == "values" else ""))
        assert source.where(0) == str(tmp_path / "=a.png")
        assert set(source.classes) == set(classes if kind != "class" else classes[:1])


def test_names_of_several_words_are_one_name(tmp_path):
    bears = "image,c\na,polar bear\nb,grizzly bear\nc,cat\n"
    assert read(tmp_path, bears)[1] == read(tmp_path, bears, "?kind=tags")[1] == ("cat", "grizzly bear", "polar bear")
    fish = 'image,c\na,"tench, Tinca tinca"\nb,"goldfish, Carassius auratus"\n'
    assert read(tmp_path, fish)[1] == ("goldfish, Carassius auratus", "tench, Tinca tinca")


def test_columns_are_chosen_by_name(tmp_path):
    text = "id;patient;dx;age\na;p1;x;3\nb;p1;y;4\nc;p2;x;4\n"
    uri = table(tmp_path, text, "?delimiter=;&image=id&label=dx&group=patient&suffix=.jpg")
    source = open_source(uri)
    assert (source.kind, source.classes, source.labels.tolist()) == ("class", ("x", "y"), [0, 1, 0])
    assert source.groups.tolist() == [0, 0, 1]
    assert source.where(2) == str(tmp_path / "c.jpg")
    values = read(tmp_path, text, "?delimiter=semicolon&image=id&label=age&kind=values")
    assert values == ("values", ("age",), [[3], [4], [4]])
    tabs = text.replace(";", "\t").replace("id", "image")
    assert read(tmp_path, tabs, "?delimiter=tab&label=dx,patient&kind=tags")[1] == ("p1", "p2", "x", "y")
    assert not hasattr(open_source(table(tmp_path, "path,c\na,1\n")), "groups")


words = st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1, max_size=6).map(str.strip).filter(bool)
formulas = st.tuples(st.sampled_from(["=", "+", "-", "@", "\uff1d", "'=", "''@", "'"]), words).map("".join)
names = words | formulas


@given(st.lists(names, min_size=2, max_size=5, unique_by=str.casefold), st.data())
@settings(max_examples=60, deadline=None, phases=(Phase.explicit, Phase.generate))
def test_csv_reads_what_predict_writes(tmp_path_factory, classes, data):
    folder = tmp_path_factory.mktemp("predicted")
    (folder / "classes.txt").write_text("\n".join(classes), encoding="utf-8", newline="")
    if tuple((folder / "classes.txt").read_text(encoding="utf-8").splitlines()) != tuple(classes):
        return  # a name with a line separator of Unicode's, which no list of lines can hold
    probability = st.floats(0, 1).map(lambda p: round(p, 6))

    def write(kind, rows, top=1):
        file = io.StringIO()
        add = answers.table(file, "t.csv", telling(kind, classes), options(kind, top), False)
        for i, row in enumerate(rows):
            add({"image": f"{i}.png", **row})
        return file.getvalue()

    def described(chosen):
        return {"predictions": [{"class": c, "probability": data.draw(probability)} for c in chosen]}

    query = f"?classes={folder}/classes.txt"
    tags = data.draw(st.lists(st.lists(st.sampled_from(classes), unique=True), min_size=1, max_size=4))
    if any(tags):
        want = [[float(c in row) for c in classes] for row in tags]
        text = write("tags", map(described, tags))
        assert read(folder, text, query) == read(folder, text, query + "&kind=tags") == ("tags", tuple(classes), want)
    top = data.draw(st.integers(1, len(classes)))
    ranked = data.draw(st.lists(st.permutations(classes), min_size=1, max_size=4))
    text = write("class", (described(row[:top]) for row in ranked), top)
    assert read(folder, text, query) == ("class", tuple(classes), [classes.index(row[0]) for row in ranked])
    row = st.lists(st.floats(-9, 9), min_size=len(classes), max_size=len(classes))
    numbers = data.draw(st.lists(row, min_size=1, max_size=4))
    text = write("values", ({"values": dict(zip(classes, row))} for row in numbers))
    kind, found, labels = read(folder, text, "?kind=values")
    assert (kind, found) == ("values", tuple(classes))
    np.testing.assert_array_equal(labels, np.array(numbers, np.float32))


def test_values_take_their_names_from_the_header(tmp_path):
    (tmp_path / "a").write_bytes(b"")
    source = open_source(table(tmp_path, "path,x,y\na,1.5,-2e3\nb, 0 ,7\n", "?kind=values"))
    assert (source.kind, source.classes) == ("values", ("x", "y"))
    assert source.labels.dtype == np.float32
    assert source.labels.tolist() == [[1.5, -2000], [0, 7]]
    source[0]["label"][:] = 0  # a sample is the caller's own
    assert source[0]["label"].tolist() == [1.5, -2000]


def test_paths_begin_at_the_root_or_at_the_table(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    uri = table(tmp_path, f"path,c\na.jpg,1\n{tmp_path / 'b.jpg'},2\n")
    source = open_source(f"{uri}?root={tmp_path / 'here'}")
    assert [source.where(i) for i in range(2)] == [str(tmp_path / "here/a.jpg"), str(tmp_path / "b.jpg")]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_source("csv:~/table.csv?root=~/here").where(0) == str(tmp_path / "here/a.jpg")
    monkeypatch.chdir(tmp_path)
    assert open_source("csv:table.csv").where(0) == "a.jpg"


def test_paths_of_files_that_are_there_may_be_any_bytes(tmp_path):
    (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(b"x")
    source = open_source(table(tmp_path, b"path,c\ncaf\xe9.png,a\n"))
    assert source[0]["image"] == b"x"
    with pytest.raises(UserError, match="line 3: no UTF-8 text"):
        open_source(table(tmp_path, b"path,c\ncaf\xe9.png,a\nth\xe9.png,a\n"))  # as Latin-1 would be


def test_a_file_that_is_absent_is_named_when_it_is_read(tmp_path):
    source = open_source(table(tmp_path, "path,c\na.jpg,1\n"))
    with pytest.raises(Unreadable, match=r"a\.jpg: No such file.*table\.csv lists it"):
        source[0]


@pytest.mark.parametrize(
    ("text", "query"),
    [("path,c\na,x\nb,y\n", ""), ("path\na,x\nb\n", "?kind=tags"), ("path,v\na,1\nb,2\n", "?kind=values")],
)
def test_pickles_and_is_read_by_threads(tmp_path, text, query):
    for name in "ab":
        (tmp_path / name).write_bytes(name.encode() * 100)
    source = open_source(table(tmp_path, text, query))
    again = pickle.loads(pickle.dumps(source))
    assert (again.labels == source.labels).all()
    with ThreadPoolExecutor(8) as pool:
        samples = list(pool.map(lambda i: again[i % 2], range(400)))
    for i, sample in enumerate(samples):
        assert sample["image"] == b"ab"[i % 2 : i % 2 + 1] * 100
        assert np.array_equal(sample["label"], source.labels[i % 2])


def test_the_table_is_flat(tmp_path):
    rows = "".join(f"folder/{i:08d}.jpg,class {i % 1000}\n" for i in range(20_000))
    source = open_source(table(tmp_path, "path,c\n" + rows))
    assert (len(pickle.dumps(source)) - len(source._names._joined)) / len(source) < 16
    assert source.where(19_999) == os.path.join(tmp_path, "folder/00019999.jpg")
    assert source.classes[source.labels[19_999]] == "class 999"


@pytest.mark.parametrize(
    ("text", "query", "wanted"),
    [
        ("", "", "is '', wanted a header"),
        ("a.jpg,cat\nb.jpg,dog\n", "", r"the first line of .*table\.csv is 'a\.jpg,cat', wanted a header"),
        ("path;label\na;b\n", "", "'path;label', wanted a header, separated by commas"),
        ("path\na\n", "", "no label column, only 'path'"),
        ("path\na\n", "?kind=values", "no label column"),
        ("path,x,y\na,1,2\n", "", r"2 label columns \(x, y\): add \?kind=tags .* or \?kind=values"),
        ("path,x,x\na,1,2\n", "?kind=values", "'x' as column 3"),
        ("path,x,\na,1,2\n", "?kind=values", "'' as column 3"),
        ("path,c\n", "", "no rows"),
        ("path,c\na,1\nb\n", "", "line 3: 1 column, but the header has 2 columns"),
        ("path,c\na,1,2\n", "", "line 2: 3 columns, but"),
        ("path,x,y\na,1\n", "?kind=values", "line 2: 2 columns, but the header has 3 columns"),
        ("path,c\n ,1\n", "", "line 2: the path is empty"),
        ("path,c\na, \n", "", "line 2: 'a' has no class"),
        ("path,c\na,1\nb,1\n./a,2\n", "", r"line 4: '\./a' is already in line 2"),
        ("path,x\na,1\nb,one\n", "?kind=values", "line 3: x is 'one', wanted a finite number"),
        ("path,x\na,NaN\n", "?kind=values", "line 2: x is 'NaN'"),
        ("path,x\na,inf\n", "?kind=values", "line 2: x is 'inf'"),
        ("path,x\na,1e39\n", "?kind=values", "line 2: x is '1e39'"),
        ("path,x\na,\n", "?kind=values", "line 2: x is ''"),
        ("path\na\n", "?kind=tags", "no tag in any row"),
        ('path,c\na,1\n"b"c,1\n', "", "line 3: .*correct the quotes"),
        (b"path,c\na,\xff\n", "", r"line 2: no UTF-8 text: save the table as UTF-8"),
        ("path,x\na,0.5\nb,1.25\n", "", r"line 2 has '0\.5', and all labels.*kind=values \(num.*or kind=class \(names"),
        ("path,x\na,1.0\nb,0.0\n", "", r"line 2 has '1\.0', and all.*kind=class.*or kind=tags \(whether it has"),
        ("path,x,y\na,0.5,1\nb,2,1\n", "?kind=tags", r"line 2 has '0\.5'.*kind=values instead of kind=tags.*sep=none"),
        ("path,x,y\na,1,0\nb,-1,0\n", "?kind=tags", r"line 3 has '-1', and all labels are numbers, but not only 0, 1"),
        ("path,x,y\na,1,0\nb,1,1\n", "?kind=class", "line 3: 2 ones in the columns of 0 and 1"),
        ("path,x,y\na,1,0\nb,1,\n", "?kind=class", "line 3: 1 unknown in the columns of 0 and 1"),
        ("path,x,x\na,1,0\n", "", "'x' as column 3"),
        ("path,x\na,b\n", "?kind=class&sep=;", "sep is between tags, and kind is class"),
        ("path,x\na,b\n", "?sep=ab", "sep must be one character or one of comma, .*, got 'ab'"),
        ("path;x\na;b\n", "", "add delimiter=semicolon"),
        ("name,x\na,b\n", "", r"or add image=COLUMN"),
        ("name,x\na,b\n", "?image=nam", "no column 'nam': did you mean 'name'"),
        ("path,x\na,b\n", "?label=y", "no column 'y': known: path, x"),
        ("path,x\na,b\n", "?label=path", "the column 'path' cannot be a label, too"),
        ("path,p,x\na,,b\n", "?group=p", "line 2: the group is empty"),
        ("path,x\na\0b,c\n", "", "line 2: the path 'a.x00b' holds a zero byte"),
        ("image,time,class,probability\na,0,x,1\n", "", "frames of videos"),
        ("path,c\na,1\n", "?kind=tag", "did you mean 'tags'"),
        ("path,c\na,1\n", "?rot=/x", "did you mean 'root'"),
        ("path,x\na,1\n", "?kind=values&classes=x", "remove classes="),
        ("path,c\na,1\n", "?classes=absent.txt", r"absent\.txt: No such file"),
    ],
)
def test_errors_name_the_place(tmp_path, text, query, wanted):
    with pytest.raises(UserError, match=wanted):
        open_source(table(tmp_path, text, query))


def test_a_table_that_is_absent(tmp_path):
    table(tmp_path, "path,c\na,1\n")
    with pytest.raises(UserError, match=r"tabel\.csv: No such file.*did you mean .*table\.csv"):
        open_source(f"csv:{tmp_path / 'tabel.csv'}")


def test_empty_and_doubled_lists_of_classes(tmp_path):
    for text, wanted in (("\n", "names no class"), ("a\nb\na\n", "names 'a' twice")):
        (tmp_path / "classes.txt").write_text(text)
        with pytest.raises(UserError, match=wanted):
            open_source(table(tmp_path, "path,c\na,a\n", f"?classes={tmp_path / 'classes.txt'}"))
