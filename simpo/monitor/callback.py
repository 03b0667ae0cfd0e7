"""The monitors of a run, as a callback: when they look, what they log, and whether the run goes on."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from accelerate.utils import broadcast_object_list
from tqdm.contrib.logging import logging_redirect_tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import is_deepspeed_zero3_enabled

from simpo.errors import Lost
from simpo.monitor.answers import (
    Answer,
    answer_numbers,
    choose_prompts,
    end_ids,
    generate_answers,
    prompt_room,
    why_no_answers,
)
from simpo.monitor.checkpoint import keep_checkpoint
from simpo.monitor.files import GENERATIONS, WARNINGS, MonitorFiles
from simpo.monitor.probe import Columns, PairProbe, Sample, choose_sample, pair_numbers, with_reference
from simpo.monitor.signals import LEVELS, PROBE_RULES, TRAINING_RULES, Finding, History, findings
from simpo.monitor.tables import log_table

if TYPE_CHECKING:
    from simpo.trainer import PreferenceTrainer

logger = logging.getLogger(__name__)

PROBES = 10  # in a run without evaluations
_MOST = 12  # in any run, about: more would cost time where every few steps are evaluated


class Monitors(TrainerCallback):
    """Follows some pairs and prompts, and warns where a run goes wrong (`simpo.monitor.signals.RULES`).

    Looks at the start, at evaluations (or about ten times where there are none), and at the end. The weights that come
    out are those of a run without.

    Args:
        trainer: whose run it is; `args.monitor` says `warn` or `stop`.
    """

    def __init__(self, trainer: PreferenceTrainer) -> None:
        self._trainer = trainer
        self._files = MonitorFiles(str(trainer.args.output_dir))
        self._said: dict[str, str] = {}  # name of a rule -> gravest level so far
        self._looked = -1  # step of the last look
        self._probe: PairProbe | None = None
        self._sample: Sample | None = None
        self._start: Columns = {}
        self._prompts: list[list[int]] = []
        self._ends: tuple[int, ...] = ()

    # When

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        """Choose what is looked at, and find what was seen at the start of a run that is resumed."""
        looks = [int(entry["step"]) for entry in state.log_history if any(key.startswith("monitor/") for key in entry)]
        self._said, self._looked, self._probe, self._start = {}, max(looks, default=-1), None, {}
        if state.is_world_process_zero:
            self._files.begin(state.global_step)
            for row in self._files.warnings():
                if row.get("level") in LEVELS:
                    name = str(row.get("name"))
                    self._said[name] = max(self._said.get(name, "note"), row["level"], key=LEVELS.index)
        trainer = self._trainer
        sample = choose_sample(trainer.train_dataset, trainer.eval_dataset, trainer.args.monitor_pairs)
        if sample is None:
            self._note("no_pairs", "no row has two responses, so no pair can be followed", "write monitor: off")
            return
        self._sample, self._ends = sample, end_ids(trainer)
        self._probe = PairProbe(trainer, sample, self._ends)
        self._prompts = self._choose_prompts(sample)
        if not sample.held_out:
            self._note(
                "no_held_out_pairs",
                f"there is no evaluation set, so the monitors follow {len(sample.row)} pairs that are trained on",
                "set test_size, or name an evaluation source, to see what holds for other pairs",
            )
        if state.global_step:
            self._start = self._known_start() or {}
            self._looked = self._looked if self._start else -1  # else this step is the start

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        """Look for the first time: the log's file is there by now, and no step was taken."""
        if not self._start:
            self._look()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Look where no evaluation will, and at the end."""
        evaluates = self._trainer.eval_dataset is not None and str(getattr(args.eval_strategy, "value", "no")) != "no"
        ends = state.global_step >= state.max_steps
        due = state.global_step % max(1, round(state.max_steps / PROBES)) == 0
        if (due or ends) and not evaluates:
            self._look()

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        """Look, unless the last time was a moment ago."""
        ends = state.global_step >= state.max_steps
        if self._trainer.is_in_train and (
            not self._start or ends or state.global_step - self._looked >= state.max_steps / _MOST
        ):
            self._look()

    def on_train_end(self, args: TrainingArguments, *_: Any, **__: Any) -> None:
        """Look for the last time, where no evaluation did, and the run does not go on with its next start.

        The best model, loaded by now, is that of another step.
        """
        if not (args.load_best_model_at_end or self._trainer.is_interrupted()):  # who interrupts it gives it seconds
            self._look()

    def on_log(
        self, args: TrainingArguments, state: TrainerState, *_: Any, logs: dict[str, Any] | None = None, **__: Any
    ) -> None:
        """Judge the numbers of a training step, which are the same on every process."""
        if logs is not None and "loss" in logs and state.is_world_process_zero:
            self._say(findings(self._history(), TRAINING_RULES))

    # What

    def _choose_prompts(self, sample: Sample) -> list[list[int]]:
        trainer = self._trainer
        if not trainer.args.monitor_prompts:
            return []
        reason = why_no_answers(trainer)
        prompts = choose_prompts(sample, trainer.args.monitor_prompts, prompt_room(trainer))
        if reason is None and not prompts:
            reason = "every prompt fills the model's context"
        if reason is not None:
            self._without_answers(reason)
            return []
        return prompts

    def _without_answers(self, reason: str) -> None:
        self._note(
            "no_generations",
            f"no prompt is answered during training: {reason}",
            "sample from a checkpoint with simpo generate; monitor_prompts: 0 leaves out this note",
        )

    def _known_start(self) -> Columns | None:
        """What was measured at the start of a run that is resumed, read by the first process for all."""
        assert self._sample is not None and self._probe is not None
        found = self._files.first_probe() if self._trainer.is_world_process_zero() else None
        (found,) = broadcast_object_list([found])
        if found is not None and np.array_equal(found.get("row", ()), self._sample.row):
            return found
        self._note(
            "start_unknown",
            f"the numbers of the start are not in {self._files.folder}, so changes count from step "
            f"{self._trainer.state.global_step}",
            "keep the folder monitor with the checkpoints",
        )
        return None

    def _look(self) -> None:
        """Measure, log, write, judge; every process must call it."""
        trainer, state = self._trainer, self._trainer.state
        if self._probe is None or self._looked == state.global_step:
            return
        self._looked = state.global_step
        found = self._probe.measure()
        self._start = self._start or found
        answers = self._answers()
        numbers = pair_numbers(found, self._start, trainer.scorer.objective) | answer_numbers(answers)
        log_line_is_due = trainer.control.should_log  # which logging anything else would cancel
        trainer.log(numbers)
        trainer.control.should_log = log_line_is_due
        grave: list[Finding] = []
        if state.is_world_process_zero:
            rows = [{"step": state.global_step, **asdict(answer)} for answer in answers]
            self._files.add(GENERATIONS, rows)
            if all(np.isfinite(found[side]).all() for side in ("chosen", "rejected")):
                self._files.write_probe(state.global_step, with_reference(found, self._start))
            self._show(rows)
            seen = findings(self._history(), PROBE_RULES)
            self._say(seen)
            grave = [finding for finding in seen if finding.level == "stop"]
        if trainer.args.monitor == "stop" and state.global_step < state.max_steps:  # a finished run is exported
            self._stop_at(grave)

    def _answers(self) -> list[Answer]:
        """Greedy answers; a model that fails to give them is not asked again, and trains on."""
        if not self._prompts:
            return []
        try:
            return generate_answers(self._trainer, self._prompts, self._ends)
        except Exception as error:
            if is_deepspeed_zero3_enabled():  # other processes wait for this one within a layer
                raise
            self._prompts = []
            self._without_answers(f"{type(error).__name__}: {error}")
            return []

    # What becomes of it

    def _show(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """The answers in the experiment trackers, whose failures are theirs."""
        try:
            log_table(rows, self._trainer.args.report_to or (), self._trainer.callback_handler.callbacks)
        except Exception as error:
            logger.warning("a tracker did not take the answers of step %d: %s", self._trainer.state.global_step, error)

    def _history(self) -> History:
        state = self._trainer.state
        return History(
            logs=state.log_history,
            max_steps=state.max_steps,
            pairs_per_step=self._trainer.args.total_train_batch_size or 1,
            probe_pairs=0 if self._sample is None else len(self._sample.row),
            held_out=self._sample is not None and self._sample.held_out,
        )

    def _note(self, name: str, text: str, advice: str) -> None:
        if self._trainer.is_world_process_zero():
            self._say([Finding(self._trainer.state.global_step, name, "note", text, advice)])

    def _say(self, found: Sequence[Finding]) -> None:
        """Print and keep what is new, or graver than before."""
        fresh = [one for one in found if _rank(one.level) > _rank(self._said.get(one.name))]
        self._said |= {one.name: one.level for one in fresh}
        self._files.add(WARNINGS, [asdict(one) for one in fresh]) if fresh else None
        with logging_redirect_tqdm():
            for one in fresh:
                logger.warning("%s", _shown(one))

    def _stop_at(self, grave: Iterable[Finding]) -> None:
        """End the run on all processes where the first one found a reason."""
        (reasons,) = broadcast_object_list([[_shown(one) for one in grave]])
        if not reasons:
            return
        path = keep_checkpoint(self._trainer, keep_others=True)
        raise Lost(
            f"the run is lost, and monitor: stop ends it at step {self._trainer.state.global_step}:\n"
            + "\n".join(reasons)
            + f"\nThe weights of this step are in {path}, to be looked at; what was seen is in {self._files.folder}. "
            "Start afresh with other settings and another output_dir, or go on with this run all the same with "
            "monitor: warn"
        )


def _rank(level: str | None) -> float:
    return -math.inf if level is None else LEVELS.index(level)  # type: ignore[arg-type]


def _shown(finding: Finding) -> str:
    seen = f"monitor, step {finding.step}, {finding.level}: {finding.name}: {finding.text}"
    return f"{seen}\n    what to do: {finding.advice}"
