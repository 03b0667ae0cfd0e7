"""A run on several processes: each shows that it lives, and ends with the name of the one that does not."""

import contextlib
import dataclasses
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from accelerate import PartialState
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from simpo.errors import ConfigError, Interrupted, Lost
from simpo.redact import redact_text
from simpo.run.folder import SIGNS
from simpo.run.watch.shared_folder import SharedFolder, shared_folder
from simpo.run.watch.signs import FAILED, LEFT, Observer, give, lost, own_sign, sign_file
from simpo.run.watch.signs import behind as behind_others

LOST = 69
"""What a process ends with because another one is lost or hangs: EX_UNAVAILABLE of sysexits.h."""
_BEAT = 2.0  # seconds between two signs; more where many processes would read many files
_LOOK = 10.0  # seconds without progress after which the others' signs are read
_CONNECTION = re.compile(r"gloo|nccl|connection|peer|socket|broken pipe|timed out|process ?group|store", re.IGNORECASE)
_PACKAGE = str(Path(__file__).resolve().parents[2])
_WAITING = ("torch/distributed/", "deepspeed/comm/", "accelerate/utils/operations")


class Heartbeat(TrainerCallback):
    """Gives signs of this process, and judges by those of the others once it does not get on itself.

    A thread does both. A process that ended, or gave no sign for `timeout` seconds, is lost, whatever the run is
    doing. Where all give signs but none moves for as long, one hangs; this is judged between the end of the first
    step and the next checkpoint, and in evaluations, since loading, tokenising, compiling and saving take their time.
    Moves are counted at every forward pass of the model and at every step.

    Args:
        folder: from `shared_folder`.
        timeout: seconds.
        output_dir: named in messages.
    """

    def __init__(self, folder: SharedFolder, timeout: float, output_dir: str) -> None:
        state = PartialState()
        self.timeout = timeout
        self.interval = min(max(_BEAT, state.num_processes / 8), timeout / 10)
        self._look_after = min(_LOOK, timeout / 4)
        self._sign = own_sign(state.process_index)
        self._file = sign_file(folder.path, folder.run, state.process_index)
        files = [sign_file(folder.path, folder.run, rank) for rank in range(state.num_processes)]
        self._observer = Observer(files)
        self._output_dir = output_dir
        self._moves, self._step = 0, 0
        self._others = -1, 0.0  # moves of all processes, and since when
        self._stepped = self._watched = False
        self._hook: Any = None
        self._main = threading.get_ident()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Give the first sign, and go on in a thread."""
        self._beat()
        self._thread.start()

    def stop(self) -> None:
        """End the thread; the sign stays as it is."""
        self._end.set()
        self._thread.join(timeout=_LOOK)  # a disk that hangs must not keep the run
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def follow(self, trainer: Trainer) -> None:
        """Count what a trainer does, and leave it time to save, also where a monitor asks for it within a step."""
        trainer.add_callback(self)
        save = trainer._save_checkpoint

        def unwatched(*args: Any, **named: Any) -> None:
            self._watched = False
            save(*args, **named)

        trainer._save_checkpoint = unwatched  # type: ignore[method-assign]  # callbacks learn of it afterwards
        assert trainer.model is not None
        self._hook = trainer.model.register_forward_pre_hook(lambda *_: self._move())

    def _move(self) -> None:
        self._moves += 1

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The first step may compile."""
        self._stepped = self._watched = False
        self._step = state.global_step

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A step begins."""
        self._step = state.global_step + 1
        self._watched = self._stepped
        self._move()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """A step ended."""
        self._stepped = self._watched = True
        self._move()

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """An evaluation gets on."""
        self._watched = True
        self._move()

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """An evaluation ended."""
        self._watched = False

    def on_predict(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Any, **kwargs: Any
    ) -> None:
        """A pass over the pairs ended."""
        self._watched = False

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A checkpoint may follow."""
        self._watched = False

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """What follows takes its time."""
        self._watched = False

    def _beat(self, **changes: Any) -> None:
        self._sign = dataclasses.replace(
            self._sign, beats=self._sign.beats + 1, moves=self._moves, step=self._step, **changes
        )
        with contextlib.suppress(OSError):  # a disk that fails is the run's to report
            give(self._file, self._sign)

    def _run(self) -> None:
        moves, since = self._moves, time.monotonic()
        last = since
        self._others = -1, since
        while not self._end.wait(self.interval):
            now = time.monotonic()
            place, waits = _place(sys._current_frames().get(self._main))
            self._beat(place=place, waits=waits)
            if self._moves != moves or now - last > self.timeout / 2:  # or this process itself was stopped meanwhile
                moves, since = self._moves, now
                self._observer.forget()
                self._others = -1, now
            last = now
            if lines := self._judge(now - since):
                self.leave(lines)

    def _judge(self, still: float) -> list[str]:
        """What is wrong with the others, when this process did not get on for so many seconds."""
        if still < self._look_after:
            return []
        signs = self._observer.look()
        # looking began a beat late, and whoever gives no signs is lost rather than behind
        lines = lost(signs, self._sign, self.timeout - self._look_after - 2 * self.interval)
        moves, now = sum(sign.moves for sign, _ in signs), time.monotonic()
        if moves != self._others[0]:
            self._others = moves, now
        # where one process works and the others wait, as for samples that it generates, the run gets on
        if not lines and self._watched and now - self._others[1] >= self.timeout - self._look_after - self.interval:
            lines = behind_others(signs)
        return lines

    def explain(self, error: BaseException) -> list[str]:
        """After an error of a connection, which process broke it; every process that lost it asks."""
        if not (isinstance(error, RuntimeError) and _CONNECTION.search(str(error))):
            return []
        self._observer.forget()
        end = time.monotonic() + 6 * self.interval
        while time.monotonic() < end:
            self._beat(state=LEFT)
            if lines := lost(self._observer.look(), self._sign, 4 * self.interval):
                return lines
            time.sleep(self.interval / 2)
        return []

    def leave(self, lines: list[str]) -> None:
        """End this process at once: closing a connection to one that is gone can take for ever."""
        self._beat(state=LEFT)
        text = "; ".join(lines)
        again = f"the same command goes on from the last checkpoint in {self._output_dir}"
        sys.stdout.flush()
        os.write(2, f"error (process {self._sign.rank} on {self._sign.host}): {text}; {again}\n".encode())
        os._exit(LOST)

    def failed(self, error: BaseException) -> None:
        """Tell the others why this process ends."""
        self._beat(state=FAILED, place=redact_text(f"{type(error).__name__}: {error}"))


def _place(frame: FrameType | None) -> tuple[str, bool]:
    """Where a thread stands, and whether it waits for other processes there."""
    names = []
    while frame is not None:
        code = frame.f_code
        names.append((code.co_filename.replace(os.sep, "/"), f"{frame.f_lineno} ({code.co_name})"))
        frame = frame.f_back
    waits = any(part in file for file, _ in names[:6] for part in _WAITING)
    own = next((at for at, (file, _) in enumerate(names) if file.startswith(_PACKAGE)), 0)
    shown = dict.fromkeys((0, own)) if names else {}
    return " called from ".join(":".join(("/".join(names[at][0].split("/")[-2:]), names[at][1])) for at in shown), waits


def hang_timeout(args: Any) -> float:
    """Seconds after which a process that hangs is named; a third of `ddp_timeout` where `hang_timeout` is left out."""
    return float(args.ddp_timeout / 3 if args.hang_timeout is None else args.hang_timeout)


@contextlib.contextmanager
def heartbeat(args: Any) -> Iterator[Heartbeat | None]:
    """Watch the other processes of a run in this block; every process must call it.

    Args:
        args: its `output_dir` holds the signs, in a folder that is removed at the end.

    Yields:
        What a trainer is to be followed with; None where nothing is watched: one process alone, or `hang_timeout` 0.

    Raises:
        ConfigError: not all processes see the output folder.
    """
    timeout = hang_timeout(args)
    if PartialState().num_processes == 1:
        shutil.rmtree(Path(str(args.output_dir)) / SIGNS, ignore_errors=True)  # of an earlier start on several
        yield None
        return
    with shared_folder(str(args.output_dir), timeout) as folder:
        if not timeout:
            yield None
            return
        pulse = Heartbeat(folder, timeout, str(args.output_dir))
        pulse.start()
        try:
            yield pulse
        except (ConfigError, Interrupted, Lost):  # of all processes alike: none is to blame
            pulse.stop()
            raise
        except BaseException as error:
            pulse.stop()
            if lines := pulse.explain(error):
                pulse.leave(lines)
            pulse.failed(error)
            folder.keep()
            raise
        else:
            pulse.stop()
