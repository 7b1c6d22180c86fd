"""Sources whose labels count in another list of classes."""

import pickle

import numpy as np
import pytest

from jaxvision.data.sources import absent, only_present, with_classes
from jaxvision.errors import UserError


class Table:
    """A source without images."""

    def __init__(self, kind, classes, labels):
        self.uri, self.kind, self.classes = f"table:{kind}", kind, tuple(classes)
        self.labels = np.asarray(labels, np.int32 if kind == "class" else np.float32)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        label = self.labels[i]
        return {"image": b"", "label": int(label) if self.kind == "class" else label, "index": 100 + i}

    def where(self, i):
        return f"row {i}"


def rows(source):
    return [source[i] for i in range(len(source))]


def test_labels_go_by_the_names_of_the_classes():
    table = Table("class", "dbc", [0, 1, 2, 1])
    there = with_classes(table, tuple("abcde"), "the training data")
    assert there.classes == tuple("abcde")
    assert [there.classes[k] for k in there.labels] == ["d", "b", "c", "b"]
    assert there.labels.dtype == np.int32
    assert [row["label"] for row in rows(there)] == there.labels.tolist()
    assert [row["index"] for row in rows(there)] == [100, 101, 102, 103]
    assert (there.uri, there.where(2), len(there)) == (table.uri, "row 2", 4)
    assert absent(there) == ("a", "e")
    assert rows(pickle.loads(pickle.dumps(there))) == rows(there)
    only = only_present(there)
    assert only.classes == ("b", "c", "d")
    assert [only.classes[k] for k in only.labels] == ["d", "b", "c", "b"]
    assert with_classes(table, tuple("dbc"), "the training data") is table


def test_tags_that_the_source_does_not_have_are_unknown():
    table = Table("tags", "ba", [[1, 0], [0, np.nan]])
    there = with_classes(table, tuple("abc"), "the training data")
    np.testing.assert_array_equal(there.labels, np.array([[0, 1, np.nan], [np.nan, 0, np.nan]], np.float32))
    assert there.labels.dtype == there[0]["label"].dtype == np.float32
    for k in range(2):
        np.testing.assert_array_equal(there[k]["label"], there.labels[k])
    assert absent(there) == ("a", "c")  # of a no positive is known, of c nothing


@pytest.mark.parametrize(
    ("kind", "classes", "words"),
    [
        ("class", "abx", r"the classes of table:class are not those of the training data: only there: \['x'\]"),
        ("tags", "ax", r"only there: \['x'\]; only in the training data: \['b', 'c'\]"),
        ("values", "ab", r"only in the training data: \['c'\]"),
    ],
)
def test_what_is_not_known_is_refused_by_name(kind, classes, words):
    labels = [0] if kind == "class" else [[0.0] * len(classes)]
    with pytest.raises(UserError, match=words):
        with_classes(Table(kind, classes, labels), tuple("abc"), "the training data")


def test_values_in_another_order_are_put_in_order():
    there = with_classes(Table("values", "ba", [[1.5, -2.0]]), tuple("ab"), "the training data")
    np.testing.assert_array_equal(there.labels, [[-2.0, 1.5]])
    assert absent(there) == ()


def test_a_label_outside_of_its_own_list_becomes_no_other_class():
    table = Table("class", "ba", [0, 2])
    there = with_classes(table, tuple("abc"), "the training data")
    with pytest.raises(UserError, match=r"row 1: label 2 is outside 0\.\.1, the 2 classes of table:class"):
        there[1]


def test_of_a_source_that_reads_for_its_labels_only_the_names_count():
    table = Table("class", "ab", [0, 0])
    table.reads_for_labels = True
    assert absent(table) == ()
    assert absent(with_classes(table, tuple("abc"), "the training data")) == ("c",)
    assert only_present(table).classes == ("a",)
