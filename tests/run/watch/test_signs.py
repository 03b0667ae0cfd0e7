"""What is read from the signs of life of other processes."""

import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from simpo.run.watch.signs import FAILED, LEFT, Observer, Sign, behind, give, lost, own_sign, take

OWN = own_sign(0)
ELSEWHERE = Sign(1, "node-b", "another machine", 4321, beats=7, moves=30, step=12)


def test_a_sign_is_read_as_it_was_given(tmp_path: Path) -> None:
    file = tmp_path / "sign"
    assert take(file) is None
    for place in ("x" * 3000, "short"):  # the second is written over the first
        give(file, dataclasses.replace(ELSEWHERE, place=place))
        assert take(file) == dataclasses.replace(ELSEWHERE, place=place[:400])
    file.write_bytes(b'{"rank": 1, ')
    assert take(file) is None


def test_words_of_other_scripts_do_not_spoil_a_sign(tmp_path: Path) -> None:
    file = tmp_path / "sign"
    for place in ("错误" * 300, "\x1b" * 400):  # six bytes each in JSON
        give(file, dataclasses.replace(ELSEWHERE, state=FAILED, place=place))
        found = take(file)
        assert found is not None and found.state == FAILED and found.place == place[: len(found.place)] != ""
        assert file.stat().st_size == 1024


def test_silence_is_counted_from_the_last_change(tmp_path: Path) -> None:
    files = [tmp_path / "0", tmp_path / "1", tmp_path / "2"]
    observer = Observer(files)
    for file in files[:2]:
        give(file, ELSEWHERE)
    assert [silent for _, silent in observer.look()] == [0, 0]
    time.sleep(0.05)
    give(files[1], dataclasses.replace(ELSEWHERE, beats=8))
    (_, first), (sign, second) = observer.look()
    assert first >= 0.05 and second == 0 and sign.beats == 8
    files[0].unlink()  # ended in order
    assert len(observer.look()) == 1
    observer.forget()
    assert observer.look()[0][1] == 0


@pytest.mark.parametrize(
    ("changes", "silent", "words"),
    [
        ({}, 3, None),
        ({}, 30, "process 1 on node-b (pid 4321) was lost at step 12: no sign of life for 30 s"),
        ({"state": LEFT}, 30, None),  # because of somebody else
        ({"state": FAILED, "place": "OSError: no room"}, 0, "on node-b (pid 4321) failed at step 12: OSError: no room"),
    ],
)
def test_who_is_lost(changes, silent, words) -> None:
    signs = [(OWN, 99.0), (dataclasses.replace(ELSEWHERE, **changes), silent)]
    lines = lost(signs, OWN, patience=10)
    assert len(lines) == (words is not None)
    assert words is None or words in lines[0]


def test_a_dead_process_of_the_same_machine_is_seen_at_once() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    sign = dataclasses.replace(ELSEWHERE, machine=OWN.machine, host=OWN.host, pid=child.pid)
    assert lost([(sign, 0)], OWN, patience=10) == []
    child.kill()
    deadline = time.monotonic() + 20
    while not (lines := lost([(sign, 0)], OWN, patience=10)) and time.monotonic() < deadline:  # a zombie: nobody waited
        time.sleep(0.01)
    assert lines == [f"process 1 on {OWN.host} (pid {child.pid}) was killed at step 12"]
    child.wait()
    assert lost([(sign, 0)], OWN, patience=10) == lines
    assert lost([(dataclasses.replace(sign, pid=os.getpid()), 0)], OWN, patience=10) == []


def sign(rank: int, moves: int, *, waits: bool, place: str = "train.py:3 (f)") -> tuple[Sign, float]:
    return Sign(rank, f"node-{rank}", "m", 100 + rank, moves=moves, step=5, waits=waits, place=place), 0.0


def test_who_is_behind() -> None:
    waiting = [sign(rank, 8, waits=True) for rank in (0, 2, 3)]
    assert behind([*waiting, sign(1, 7, waits=True)]) == [
        "process 1 on node-1 (pid 101) hangs at step 5, in train.py:3 (f)"
    ]
    assert behind([*waiting, sign(1, 8, waits=False)])[0].startswith("process 1 on node-1")
    assert behind([*waiting, sign(1, 9, waits=False)])[0].startswith("process 0 on node-0")
    assert behind(waiting)[0] == "no process gets on, and none is behind the others" and len(behind(waiting)) == 4
