"""SIGTERM and SIGUSR1, which schedulers send before they take a machine away: save, stop, say "start me again"."""

import contextlib
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any, NoReturn

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from simpo.errors import Interrupted
from simpo.processes import RUN_SIGNALS, handled
from simpo.run.manifest import note_interruption


class Interruption(TrainerCallback):
    """Ends the training after the step in which the process got a signal, or the one after it, with a checkpoint.

    Several processes agree by one number, reduced after every step and read after the next: nobody waits for it.

    Attributes:
        stopped: the training was ended so, and its checkpoint is written.
        again: what goes on with the run, for messages.
    """

    def __init__(self, again: str = "the same command") -> None:
        self.stopped = False
        self.again = again
        self._leaving = False  # another signal then means nothing
        self._load_best = False
        self._received: str | None = None
        self._training = False
        self._agreed: Any = None  # of the step before: how many processes have got a signal
        self._process = os.getpid()

    def receive(self, number: int, frame: Any = None) -> None:
        """The signals' handler. What has no step to wait for is left at once."""
        if os.getpid() != self._process:  # a worker of a loader, which ends with its parent
            return
        self._received = signal.Signals(number).name
        if not self._training and not self._leaving:
            self._leave()

    def _leave(self) -> NoReturn:
        raise Interrupted(f"stopped by {self._by}; {self.again} goes on with this run")

    @property
    def _by(self) -> str:
        return self._received or "a signal to another process"

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
            self._load_best, args.load_best_model_at_end = args.load_best_model_at_end, False  # takes time for nothing

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """transformers calls this after a stop within an epoch too; the checkpoint is there, and the time is short."""
        if self.stopped:
            control.should_save = control.should_evaluate = False

    def _all_stop(self, device: torch.device) -> bool:
        if PartialState().num_processes == 1:
            return self._received is not None
        before, self._agreed = self._agreed, self._count(device)
        return before is not None and bool(before.item())

    def _count(self, device: torch.device) -> Any:
        """How many processes have got a signal."""
        return reduce(torch.tensor(float(self._received is not None), device=device), "sum")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """What follows can be done again. Of a signal in the last steps the processes do not know yet."""
        late = not self.stopped and bool(self._count(args.device).item())
        self._training, self._leaving = False, self.stopped
        if self.stopped:
            args.load_best_model_at_end = self._load_best
        elif late or self._received is not None:
            self._leave()

    def raise_if_stopped(self, folder: str, step: int) -> None:
        """Leave where a signal ended the training; every process must call it.

        Raises:
            Interrupted: the training was ended by a signal.
        """
        if self.stopped:
            raise Interrupted(
                f"stopped by {self._by} after step {step}; {self.again} goes on from {folder}/checkpoint-{step}"
            )

    @contextlib.contextmanager
    def noted_in(self, folder: str) -> Iterator[None]:
        """Let the manifest in a folder say so when a signal ends what runs in this block, in or outside of training."""
        try:
            yield
        except Interrupted:
            self._leaving = True
            if PartialState().is_main_process:
                note_interruption(folder)
            raise


def command_again(overwrite: bool, resume: str | bool | None) -> str:
    """What goes on with a run: its command, less the options that would start it anew, or from where it began."""
    given = {"--overwrite": overwrite, "--resume_from_checkpoint": isinstance(resume, str) or resume is False}
    named = " and ".join(name for name, there in given.items() if there)
    return "the same command" + (f" without {named}" if named else "")


@contextlib.contextmanager
def interruptible(again: str = "the same command") -> Iterator[Interruption]:
    """Let the two signals end what runs in this block in order; the handlers of before come back afterwards.

    Args:
        again: from `command_again`.
    """
    interruption = Interruption(again)
    if threading.current_thread() is not threading.main_thread():  # only the main thread can have handlers
        yield interruption
        return
    with handled(RUN_SIGNALS, interruption.receive):
        _end_with_launcher(signal.SIGTERM)
        try:
            yield interruption
        finally:
            _end_with_launcher(0)


def _end_with_launcher(number: int) -> None:
    """Let Linux send a signal, 0 for none, when torchrun dies: else its processes train on where nobody sees them."""
    if sys.platform == "linux" and "TORCHELASTIC_RUN_ID" in os.environ:
        ctypes.CDLL(None).prctl(1, number)  # PR_SET_PDEATHSIG
