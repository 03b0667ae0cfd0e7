"""The soak sees what is left behind; `make soak-short` runs it."""

import os
import socket
from pathlib import Path

import pytest

from benchmarks.soak import leaks
from benchmarks.soak.soak import growth


def test_growth_is_a_slope_after_the_warm_up() -> None:
    samples = [(minute, 100.0 + 400 * (minute < 15) + 0.1 * minute) for minute in range(61)]
    found = growth(samples)
    assert found["samples"] == 46 and found["mean_mib"] == pytest.approx(103.75, abs=0.1)
    assert found["percent_an_hour"] == pytest.approx(0.1 * 60 / 103.75 * 100, abs=0.01)


def test_what_is_left_behind_is_seen(tmp_path: Path) -> None:
    before = leaks.family()
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(writer)
        os.read(reader, 1)  # until the parent closes its end
        os._exit(0)
    assert leaks.left_alive(before, seconds=0.1) == {pid}
    os.close(writer)
    os.close(reader)
    assert leaks.left_alive(before) == set()  # a zombie counts as ended
    os.waitpid(pid, 0)
    descriptors = leaks.open_files()
    with (tmp_path / "file").open("w"):
        assert leaks.open_files() == descriptors + 1
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        port = listening.getsockname()[1]
        assert leaks.is_open(port)
    assert not leaks.is_open(port)
    assert leaks.count_files(tmp_path) == 1
    own = leaks.rss(os.getpid())
    assert own is not None and own > 10 and leaks.settled_rss() > 10


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no shared memory in files here")
def test_shared_memory_without_a_holder() -> None:
    name = f"simpo-test-{os.getpid()}"
    (Path("/dev/shm") / name).write_text("left")
    try:
        assert name in leaks.shared_memory()
    finally:
        (Path("/dev/shm") / name).unlink()
