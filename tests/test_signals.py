"""Signals that come while a run is still importing what it needs."""

import signal
import subprocess
import sys

import pytest

# Where the first slow module is asked for, the process gets the signal, as from a scheduler.
SIGNALLED = """
import os, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name in ("accelerate", "simpo.run"):
            os.kill(os.getpid(), int(sys.argv[1]))
from simpo.cli import main
sys.meta_path.insert(0, Finder())
main([sys.argv[2], "run.yaml"])
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("verb", ["train", "sft"])
def test_a_signal_before_the_run_has_begun_says_start_me_again(verb: str, number: signal.Signals) -> None:
    words = [sys.executable, "-c", SIGNALLED, str(int(number)), verb]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 75
    assert done.stderr == f"stopped by {number.name} before the run began; give the same command again\n"


def test_the_handlers_of_before_come_back() -> None:
    from simpo.cli.signals import ended_by_signals
    from simpo.processes import RUN_SIGNALS

    before = [signal.getsignal(number) for number in RUN_SIGNALS]
    with ended_by_signals():
        assert [signal.getsignal(number) for number in RUN_SIGNALS] != before
    assert [signal.getsignal(number) for number in RUN_SIGNALS] == before
