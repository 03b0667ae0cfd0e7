"""SIGTERM and SIGUSR1, which schedulers send before they take a machine away: save, stop, say "start me again"."""

import contextlib
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from simpo.errors import Interrupted

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Interruption(TrainerCallback):
    """Ends the training after the step in which the process got a signal, or the one after it, with a checkpoint.

    Several processes agree by one number, reduced after every step and read after the next: nobody waits for it.

    Attributes:
        stopped: the training was ended so, and its checkpoint is written.
    """

    def __init__(self) -> None:
        self.stopped = False
        self._received: str | None = None
        self._training = False
        self._agreed: Any = None  # of the step before: how many processes have got a signal
        self._process = os.getpid()

    def receive(self, number: int, frame: Any = None) -> None:
        """The signals' handler. What has no step to wait for is left at once."""
        if os.getpid() != self._process:  # a worker of a loader, which ends with its parent
            return
        self._received = signal.Signals(number).name
        if not self._training:
            raise Interrupted(f"stopped by {self._received}; the same command goes on with this run")

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """From here on, steps are waited for."""
        self._training = True

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Save and stop where a process got a signal; an evaluation that is due comes after the next start."""
        if self._all_stop(args.device):
            control.should_save = control.should_training_stop = self.stopped = True
            control.should_evaluate = False

    def _all_stop(self, device: torch.device) -> bool:
        if PartialState().num_processes == 1:
            return self._received is not None
        before, flag = self._agreed, torch.tensor(float(self._received is not None), device=device)
        self._agreed = reduce(flag, "sum")
        return before is not None and bool(before.item())

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """What follows can be done again."""
        self._training = False

    def raise_if_stopped(self, folder: str, step: int) -> None:
        """Leave, once the manifest says that the run was interrupted; every process must call it.

        Raises:
            Interrupted: the training was ended by a signal.
        """
        if self.stopped:
            raise Interrupted(
                f"stopped by {self._received or 'a signal to another process'} after step {step}; "
                f"the same command goes on from {folder}/checkpoint-{step}"
            )


@contextlib.contextmanager
def interruptible() -> Iterator[Interruption]:
    """Let the two signals end what runs in this block in order; the handlers of before come back afterwards."""
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():  # only the main thread can have handlers
        yield interruption
        return
    before = {number: signal.signal(number, interruption.receive) for number in SIGNALS}
    _end_with_launcher(signal.SIGTERM)
    try:
        yield interruption
    finally:
        _end_with_launcher(0)
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_with_launcher(number: int) -> None:
    """Let Linux send a signal, 0 for none, when torchrun dies: else its processes train on where nobody sees them."""
    if sys.platform == "linux" and "TORCHELASTIC_RUN_ID" in os.environ:
        ctypes.CDLL(None).prctl(1, number)  # PR_SET_PDEATHSIG
