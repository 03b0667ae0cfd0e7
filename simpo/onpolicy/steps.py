"""Steps of a pipeline: each is a verb in a process of its own, so that the next one finds the devices' memory free."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import yaml

from simpo.errors import Interrupted, SimPOError
from simpo.onpolicy.binarize import MANIFEST as PAIRS_MANIFEST
from simpo.onpolicy.recipe import Launch
from simpo.processes import describe_exit
from simpo.run.folder import checkpoints, is_finished
from simpo.run.manifest import settings_text
from simpo.settings.flat import default_of
from simpo.store import read_summary

Verb = Literal["generate", "annotate", "binarize", "train"]
Run = Callable[[Sequence[str]], int]
"""Runs a command to its end and returns its exit status."""
Say = Callable[[str], None]


class StepFailed(SimPOError):
    """A step ended with an error, which it has told itself; what it did before stays."""


@dataclass(frozen=True)
class Step:
    """One call of a verb.

    Args:
        name: for people, as `round-1: generate`.
        verb: what is called.
        settings: what it is told, by names.
        folder: what it writes.
        file: YAML file that the settings are written into.
        launch: how it is started; None: plainly.
    """

    name: str
    verb: Verb
    settings: dict[str, Any]
    folder: Path
    file: Path
    launch: Launch | None = None

    @property
    def command(self) -> list[str]:
        """The words that run it."""
        words = [sys.executable, "-m", "simpo.cli", self.verb, str(self.file)]
        if self.launch is not None:
            words.append(f"--accelerate={self.launch.accelerate}")
            if self.launch.num_processes is not None:
                words.append(f"--num_processes={self.launch.num_processes}")
        return words

    @property
    def shown(self) -> str:
        """The same as a user would write it."""
        return shlex.join(["simpo", *self.command[3:]])

    @property
    def done(self) -> bool:
        """Whether it has come to its end, by what it leaves."""
        if self.verb == "train":
            return is_finished(self.folder)
        if self.verb == "binarize":
            return (self.folder / PAIRS_MANIFEST).is_file()
        return read_summary(self.folder) is not None


def given_settings(settings: Any) -> dict[str, Any]:
    """The settings of a verb that differ from their defaults: what its YAML file must say."""
    return {item.name: getattr(settings, item.name) for item in fields(settings)
            if getattr(settings, item.name) != default_of(item)}  # fmt: skip


def run_steps(steps: Iterable[Step], run: Run, say: Say) -> None:
    """Run steps in turn, each as `run_step`."""
    for step in steps:
        run_step(step, run, say)


def run_step(step: Step, run: Run, say: Say) -> None:
    """Run a step, or go on with it; one that is done is not run again.

    Raises:
        Interrupted: a signal ended it in order.
        StepFailed: names the step, its command and how it ended.
    """
    if step.done:
        say(f"{step.name}: finished, {step.folder}")
        return
    if step.verb == "train" and step.folder.exists() and not checkpoints(step.folder):
        shutil.rmtree(step.folder)  # stopped before its first checkpoint, or while it wrote its model
    step.file.parent.mkdir(parents=True, exist_ok=True)
    step.file.write_text(settings_text(step.settings), encoding="utf-8")
    say(f"{step.name}: {step.shown}")
    code = run(step.command)
    if code == Interrupted.exit_code:
        raise Interrupted(f"{step.name}: stopped by a signal; the same command goes on from there")
    if code != 0 or not step.done:
        how = describe_exit(code) if code else "no error, but it is not finished"
        raise StepFailed(
            f"{step.name} ended with {how}: {step.shown}\n  What was done stays: once the cause is gone, the same "
            "command goes on from there"
        )


def describe_step(step: Step) -> str:
    """What a dry run says: state, command, and the file that it reads."""
    state = "finished" if step.done else "to be run"
    text = yaml.safe_dump(step.settings, sort_keys=False, allow_unicode=True, width=110)
    return "\n".join([f"{step.name} ({state})", f"  {step.shown}", *(f"    {line}" for line in text.splitlines())])
