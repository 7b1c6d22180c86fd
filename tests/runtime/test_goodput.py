"""Where the time of all sessions and hosts went, from made-up measurements."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxvision.runtime import goodput

PARTS = ("start", "restore", "compile", "data", "copy", "step", "evaluate", "checkpoint", "log", "other")


def parts(**seconds):
    return {**dict.fromkeys(PARTS, 0.0), **seconds}


def session(first, last, step_s, wall_s):
    return dict(first=first, last=last, step_s=step_s, wall_s=wall_s)


def test_goodput_by_hand():
    assert goodput.fraction([session(0, 100, 80.0, 100.0)]) == pytest.approx(0.8)
    # killed at 100, its last checkpoint at 60: 40 of 100 steps were done again
    killed = [session(0, 100, 80.0, 100.0), session(60, 160, 80.0, 100.0)]
    assert goodput.fraction(killed) == pytest.approx((0.6 * 80 + 80) / 200)
    # and the second lost all: a broken checkpoint, back to 20
    assert goodput.fraction([*killed, session(20, 30, 9.0, 10.0)]) == pytest.approx((0.2 * 80 + 0 + 9) / 210)
    assert goodput.fraction([session(0, 0, 0.0, 5.0)]) == 0
    assert goodput.fraction([]) == 0


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50), st.floats(0, 9), st.floats(0, 9)), max_size=6))
def test_goodput_is_a_share(rows):
    sessions = [session(first, first + more, step, step + rest) for first, more, step, rest in rows]
    assert 0 <= goodput.fraction(sessions) <= 1 + 1e-9


def test_a_killed_session_is_as_long_as_its_last_record():
    summary = {"sessions": [session(0, 20, 10.0, 15.0)]}
    records = [
        {"step": 20, "kind": "train", "time": parts(step=10.0, start=5.0)},
        {"step": 20, "kind": "eval:test", "top1": 0.5},
        {"step": 35, "kind": "train", "time": parts(step=18.0, start=5.0)},
    ]
    assert goodput.earlier_sessions(summary, records) == [session(0, 35, 18.0, 23.0)]
    assert goodput.earlier_sessions(summary, records[:2]) == summary["sessions"]
    assert goodput.earlier_sessions({}, []) == []


def test_who_holds_the_others_up():
    before = {k: parts(step=10.0) for k in range(4)}
    now = {k: parts(step=19.0, data=1.0) for k in range(4)}
    assert goodput.behind(now, before) is None
    now[2] = parts(step=16.0, data=3.5, log=0.5)
    assert goodput.behind(now, before) == (2, "data", pytest.approx(0.35))
    assert goodput.behind(now, now) is None  # nothing since
    assert goodput.behind({0: parts(data=5.0)}, {}) is None  # alone
    # all wait for their data alike: nobody is behind
    assert goodput.behind({k: parts(step=5.0, data=5.0) for k in range(4)}, {}) is None


def test_a_line_a_host_stragglers_first():
    times = {k: parts(step=20.0 - k, data=float(k)) for k in range(3)}
    lines = goodput.table(times, {0: "a", 1: "long-name", 2: "c"}).splitlines()
    assert [line.split()[0] for line in lines] == ["process", "2", "1", "0"]
    assert lines[0].split() == ["process", "machine", "data", "step"]  # no column of nothing
    assert lines[1].split() == ["2", "c", "2.0", "s", "18.0", "s"]
    assert len({len(line) for line in lines}) == 1
    many = goodput.table({k: parts(step=1.0) for k in range(64)}, dict.fromkeys(range(64), "m"))
    assert many.endswith("and 48 more")
