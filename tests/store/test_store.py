"""The store of finished records: what a kill, a full disk, another process or other settings do to it."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from simpo.errors import StoreError
from simpo.store import Store, read_records, read_settings_of, read_summary
from tests.launching import environment

SETTINGS = {"model": "m", "temperature": 0.8}

WRITER = """
import sys
from simpo.store import Store
with Store(sys.argv[1], {"model": "m", "temperature": 0.8}, shard_bytes=4096) as store:
    print("ready", flush=True)
    for row in range(int(sys.argv[2])):
        if f"k{row}" not in store.done:
            store.append(f"k{row}", {"row": row, "text": "é" * (row % 97)})
"""


def fill(folder: Path, rows: range, **options) -> None:
    with Store(folder, SETTINGS, **options) as store:
        for row in rows:
            store.append(f"k{row}", {"row": row, "text": f"text {row}"})


def rows_of(folder: Path) -> list[int]:
    return [record["row"] for record in read_records(folder)]


def test_records_come_back_by_row_whatever_the_order(tmp_path: Path) -> None:
    with Store(tmp_path / "s", SETTINGS, shard_bytes=100) as store:
        for row in (3, 1, 2, 0):
            store.append(f"k{row}", {"row": row, "text": "x" * 60 + "\ud800 é\n"})
        assert [record["row"] for record in store.records()] == [0, 1, 2, 3]
        assert store.done == {"k0", "k1", "k2", "k3"} and read_summary(tmp_path / "s") is None
        store.finish({"prompts": 4})
    assert len(list((tmp_path / "s").glob("records-*"))) == 4  # one each: they are larger than a shard
    assert next(read_records(tmp_path / "s")) == {"row": 0, "text": "x" * 60 + "\ud800 é\n"}
    assert read_summary(tmp_path / "s") == {"prompts": 4} and read_settings_of(tmp_path / "s") == SETTINGS
    with Store(tmp_path / "s", SETTINGS) as store:
        assert store.done == {"k0", "k1", "k2", "k3"}


@pytest.mark.parametrize("cut", [1, 5, 30])
def test_a_torn_last_line_is_cut_off_and_nothing_else(tmp_path: Path, cut: int) -> None:
    fill(tmp_path, range(5))
    (shard,) = tmp_path.glob("records-*")
    os.truncate(shard, shard.stat().st_size - cut)
    assert rows_of(tmp_path) == [0, 1, 2, 3]  # readers leave it out before anybody mends it
    with Store(tmp_path, SETTINGS) as store:
        assert store.done == {"k0", "k1", "k2", "k3"}
        store.append("k4", {"row": 4, "text": "text 4"})
    assert rows_of(tmp_path) == [0, 1, 2, 3, 4]
    assert all(json.loads(line) for line in shard.read_text().splitlines())


@pytest.mark.parametrize(
    "left", [b"", b'{"key"', b'{"key": "k0"}\n', b'{"key": "k9", "file": "f", "start": 3, "end": 9, "row": 0}\n']
)
def test_the_index_is_made_again(tmp_path: Path, left: bytes) -> None:
    fill(tmp_path, range(5))
    index = tmp_path / "index-00000.jsonl"
    whole = index.read_bytes()
    lines = whole.splitlines(keepends=True)
    for text in (left, b"".join(lines[:2]) + left, b"".join(lines[:2]) + left + lines[2]):
        index.write_bytes(text)
        assert rows_of(tmp_path) == [0, 1, 2, 3, 4]
        with Store(tmp_path, SETTINGS) as store:
            assert len(store.done) == 5
        assert index.read_bytes() == whole
    index.unlink()
    assert rows_of(tmp_path) == [0, 1, 2, 3, 4]


def test_damage_in_the_middle_is_said(tmp_path: Path) -> None:
    fill(tmp_path, range(5))
    (shard,) = tmp_path.glob("records-*")
    text = shard.read_bytes()
    shard.write_bytes(text.replace(b'"row": 1', b'"row"? 1'))
    with pytest.raises(StoreError, match=r"records-00000-00000.jsonl: damaged at byte \d+"):
        rows_of(tmp_path)
    (tmp_path / "index-00000.jsonl").unlink()
    with pytest.raises(StoreError, match="damaged at byte"):
        Store(tmp_path, SETTINGS).__enter__()
    shard.write_bytes(text)
    fill(tmp_path, range(5, 6))  # the lock was let go


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path), "0"]
    with Store(tmp_path, SETTINGS):
        answer = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert answer.returncode and "another process writes into it" in answer.stderr and str(tmp_path) in answer.stderr
    assert subprocess.run(command, env=environment(), capture_output=True, check=False).returncode == 0


def test_other_settings_are_named(tmp_path: Path) -> None:
    fill(tmp_path, range(2))
    with pytest.raises(StoreError, match=r"temperature: 0.8 there, 1.0 now; top_p: null there, 0.9 now"):
        Store(tmp_path, {"model": "m", "temperature": 1.0, "top_p": 0.9}).__enter__()
    assert rows_of(tmp_path) == [0, 1]
    fill(tmp_path, range(2, 3))


def test_settings_that_no_record_was_made_with_hold_nobody(tmp_path: Path) -> None:
    with Store(tmp_path, {"dtype": "float16"}):
        pass
    with Store(tmp_path, {"dtype": "float32"}) as store:
        store.append("a", {})
    before = Store(tmp_path, {"dtype": "float16"})
    with pytest.raises(StoreError, match='dtype: "float32" there, "float16" now'), before:
        pass


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(StoreError, match=r"something else \(thesis.tex\)"):
        Store(tmp_path, SETTINGS).__enter__()
    with pytest.raises(StoreError, match="holds no records"):
        list(read_records(tmp_path))
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file"):
        Store(tmp_path / "file" / "store", SETTINGS).__enter__()


def test_a_start_that_was_killed_at_once_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "store.json.part").write_text("{")
    (tmp_path / "store.lock").write_text("")
    fill(tmp_path, range(1))
    assert rows_of(tmp_path) == [0]


def test_a_full_disk_is_one_line_and_keeps_what_was_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    room = 200

    def write(fd: int, data: bytes) -> int:  # a disk with so much room left, which takes what fits
        nonlocal room
        if room == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = real(fd, data[:room])
        room -= written
        return written

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(StoreError) as caught:
        fill(tmp_path, range(100))
    kept = len(rows_of(tmp_path))
    assert kept > 1 and f"No space left on device; {kept} finished records stay" in str(caught.value)
    assert "\n" not in str(caught.value)
    (shard,) = tmp_path.glob("records-*")
    assert shard.read_bytes().endswith(b"\n")  # the line that did not fit is gone
    monkeypatch.undo()
    fill(tmp_path, range(kept, 10))
    assert rows_of(tmp_path) == list(range(10))


@pytest.mark.parametrize("size", [20_000, 60_000])
def test_a_disk_that_is_really_full(tmp_path: Path, size: int) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        with pytest.raises(StoreError, match="No space left on device") as caught:
            fill(disk / "store", range(10_000))
        kept = len(rows_of(disk / "store")) if (disk / "store" / "store.json").exists() else 0
        assert "\n" not in str(caught.value) and rows_of(disk / "store") == list(range(kept))
        with pytest.raises(StoreError, match="No space left on device"):  # still full
            fill(disk / "store", range(kept, 10_000))
        assert len(rows_of(disk / "store")) >= kept > 10
        subprocess.run(["mount", "-o", "remount,size=2m", str(disk)], check=True)
        fill(disk / "store", range(len(rows_of(disk / "store")), 1000))
        assert rows_of(disk / "store") == list(range(1000))
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def sync(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", sync)
    with pytest.raises(StoreError, match="Input/output error"):
        Store(tmp_path, SETTINGS).__enter__()


def test_each_process_has_files_of_its_own(tmp_path: Path) -> None:
    with Store(tmp_path, SETTINGS) as first:
        with Store(tmp_path, SETTINGS, rank=1) as second:
            second.append("k1", {"row": 1})
            first.append("k0", {"row": 0})
        assert [record["row"] for record in first.records()] == [0, 1]
    assert sorted(path.name for path in tmp_path.glob("records-*")) == [
        "records-00000-00000.jsonl", "records-00001-00000.jsonl",
    ]  # fmt: skip
    os.truncate(tmp_path / "records-00001-00000.jsonl", 10)
    with Store(tmp_path, SETTINGS) as alone:  # fewer processes than before: the first one mends all files
        assert alone.done == {"k0"}
        alone.append("k1", {"row": 1})
    assert rows_of(tmp_path) == [0, 1]


def test_killed_while_it_writes(tmp_path: Path) -> None:
    """Several times at moments that differ; then the end: every record once, and whole."""
    command = [sys.executable, "-c", WRITER, str(tmp_path), "3000"]
    before = 0
    for wait in (0.01, 0.05, 0.1, 0.17):
        process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        found = len(rows_of(tmp_path))
        assert found >= before
        before = found
    with Store(tmp_path, SETTINGS) as store:
        assert len(store.done) == before
        for row in range(before, before + 50):
            store.append(f"k{row}", {"row": row, "text": "é" * (row % 97)})
    assert [(r["row"], r["text"]) for r in read_records(tmp_path)] == [
        (row, "é" * (row % 97)) for row in range(before + 50)
    ]


def test_records_can_be_done_again(tmp_path: Path) -> None:
    fill(tmp_path, range(9), shard_bytes=120)
    with Store(tmp_path, SETTINGS) as store:
        store.finish({})

    def again(record: dict[str, object]) -> bool:
        return record["row"] in (0, 4, 8)

    with Store(tmp_path, SETTINGS, again=again) as store:
        assert store.done == {f"k{row}" for row in range(9) if not again({"row": row})}
        assert read_summary(tmp_path) is None
        store.append("k4", {"row": 4, "text": "new"})
    assert rows_of(tmp_path) == [1, 2, 3, 4, 5, 6, 7]
    assert list(read_records(tmp_path))[3]["text"] == "new"
