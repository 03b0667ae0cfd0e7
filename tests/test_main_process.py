"""What the main process finds or fails with reaches the others, however long it takes."""

import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from accelerate import PartialState
from accelerate.utils.other import get_free_port

from simpo.errors import SimPOError, StoreError
from simpo.main_process import on_main


def test_alone() -> None:
    assert on_main(lambda: 3) == on_main(lambda: 3, timedelta(hours=1)) == 3
    with pytest.raises(StoreError, match="no room"):
        on_main(_fail)


def _fail() -> None:
    raise StoreError("no room")


def _sleep() -> str:
    time.sleep(4)
    return "awake"


def two(work: Callable[[], object], tmp_path: Path) -> list[str]:
    """What two processes say, whose collectives wait for 2 s."""
    port, pids = str(get_free_port()), []
    for rank in range(2):
        pid = os.fork()
        if pid == 0:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            PartialState._reset_state()
            try:
                PartialState(cpu=True, timeout=timedelta(seconds=2))
                said = str(work())
            except SimPOError as error:
                said = f"{type(error).__name__} {error}"
            except BaseException as error:
                said = f"other {type(error).__name__} {error}"
            (tmp_path / str(rank)).write_text(said)
            os._exit(0)
        pids.append(pid)
    for pid in pids:
        os.waitpid(pid, 0)
    return [(tmp_path / str(rank)).read_text() for rank in range(2)]


@pytest.mark.multiprocess
def test_others_wait_as_long_as_they_are_told(tmp_path: Path) -> None:
    assert two(lambda: on_main(_sleep, timedelta(seconds=60)), tmp_path) == ["awake", "awake"]
    assert two(lambda: on_main(_sleep), tmp_path)[1].startswith("other ")  # its time is up


@pytest.mark.multiprocess
@pytest.mark.parametrize("patience", [None, timedelta(seconds=60)])
def test_an_error_is_that_of_all(tmp_path: Path, patience) -> None:
    def fail() -> None:
        raise StoreError("what is wrong")

    assert two(lambda: on_main(fail, patience), tmp_path) == ["StoreError what is wrong"] * 2

    def break_down() -> None:
        raise PermissionError(13, "Permission denied")

    own = "PermissionError: [Errno 13] Permission denied"
    assert two(lambda: on_main(break_down, patience), tmp_path) == [
        f"other {own.replace(':', '', 1)}", f"SimPOError the main process failed: {own}",
    ]  # fmt: skip
