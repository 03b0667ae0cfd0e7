"""SIGTERM and SIGUSR1 before a run has handlers of its own: on a shared disk, imports take up to minutes."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from simpo.errors import Interrupted
from simpo.processes import RUN_SIGNALS, handled


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let the two signals end the process with 75 in this block, which must leave nothing behind on the disk."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread can have handlers
        yield
        return
    with handled(RUN_SIGNALS, _leave):
        yield


def _leave(number: int, frame: FrameType | None) -> None:
    if os.environ.get("RANK", "0") == "0":
        said = f"stopped by {signal.Signals(number).name} before the run began; give the same command again\n"
        os.write(2, said.encode())
    os._exit(Interrupted.exit_code)  # no exception: a library that is being imported may catch it and go on
