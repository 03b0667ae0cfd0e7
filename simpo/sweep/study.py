"""The record of a sweep in an SQLite file, and samplers and pruners: everything that is Optuna's."""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from simpo.errors import ConfigError
from simpo.sweep.axes import Axis, Choices
from simpo.sweep.proposals import grid_points
from simpo.sweep.record import Params, Record, State
from simpo.sweep.space import SweepSettings

if TYPE_CHECKING:
    import optuna

STUDY_FILE = "study.db"
_NAME = "sweep"
_ATTEMPTS = 10  # answers of a sampler that were run already, before a random one is taken


def require_packages() -> None:
    """Refuse to start without what the sweep needs now or, hours later, at its end.

    Raises:
        ConfigError: names the extra.
    """
    for package in ("optuna", "matplotlib"):
        if find_spec(package) is None:
            raise ConfigError(f"simpo sweep needs {package}; install it with: pip install 'simpo[sweep]'")


class SweepStudy:
    """The trials of a sweep. One process at a time may hold it.

    Args:
        folder: of the sweep; `study.db` in it is read or made.
        sweep: what SPACE.yaml says.
        start: in a staged search, where it begins; the start is one of each setting's values.

    Raises:
        ConfigError: the pruner does not take its options.
    """

    def __init__(self, folder: Path, sweep: SweepSettings, start: Params | None = None) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.sweep = sweep
        self._folder = folder
        self.axes = _with_start(sweep.space, start) if start is not None else sweep.space
        self._distributions = {key: _distribution(axis) for key, axis in self.axes.items()}
        pruner = make_pruner(sweep)
        self._study = optuna.create_study(
            storage=f"sqlite:///{folder.resolve() / STUDY_FILE}",
            study_name=_NAME,
            direction=sweep.direction,
            sampler=optuna.samplers.RandomSampler(),  # never asked: every trial is enqueued with its values
            pruner=pruner,
            load_if_exists=True,
        )

    def check_identity(self, identity: Mapping[str, Any]) -> None:
        """Remember what the sweep is, or compare it with what it was.

        Raises:
            ConfigError: with every difference.
        """
        now = json.loads(json.dumps(identity, default=str))  # the types of the file
        saved = self._study.user_attrs.get("identity")
        if saved is None:
            self._study.set_user_attr("identity", now)
            return
        differences = [
            f"{key}: {json.dumps(saved.get(key))} there, {json.dumps(now.get(key))} here"
            for key in sorted(saved.keys() | now.keys())
            if saved.get(key) != now.get(key)
        ]
        if differences:
            raise ConfigError(
                f"output_dir: {self._folder} holds another sweep:\n  "
                + "\n  ".join(differences)
                + "\nUse what it was started with, or choose another --output_dir"
            )
        for trial in self._study.get_trials(deepcopy=False):
            if trial.state.name == "WAITING":  # the sweep was killed between the two lines of `add`
                self._study.ask(self._distributions)

    def records(self) -> list[Record]:
        """All trials in their order, without failed ones that were started anew."""
        retried = self._study.user_attrs.get("retried", [])
        return [_record(trial) for trial in self._study.get_trials(deepcopy=False) if trial.number not in retried]

    def add(self, params: Params, stage: str = "") -> Record:
        """A new running trial with these values."""
        self._study.enqueue_trial(params)
        trial = self._study.ask(self._distributions)
        trial.set_user_attr("stage", stage)
        return Record(trial.number, "running", dict(trial.params), stage=stage)

    def report(self, number: int, step: int, value: float) -> None:
        """Note the metric of a running trial at an optimizer step; a step that is known stays as it is."""
        trial = self._trial(number)
        if step not in self._study.get_trials(deepcopy=False)[number].intermediate_values:
            trial.report(value, step)

    def should_stop(self, number: int) -> bool:
        """Whether the pruner gives the trial up after its last report."""
        return self.sweep.pruner != "none" and self._trial(number).should_prune()

    def finish(self, record: Record) -> None:
        """Write down how a trial ended: state, value, seconds, error."""
        import optuna

        trial = self._trial(record.number)
        trial.set_user_attr("seconds", record.seconds)
        trial.set_user_attr("error", record.error)
        states = {"complete": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}
        value = record.value if record.state == "complete" else None
        state = optuna.trial.TrialState[states[record.state]]
        self._study.tell(record.number, value, state)

    def retry_failed(self) -> int:
        """Start failed trials anew: their values are free to be proposed again. Returns how many there were."""
        failed = [record.number for record in self.records() if record.state == "failed"]
        # on the study: a finished trial takes no more marks
        self._study.set_user_attr("retried", [*self._study.user_attrs.get("retried", []), *failed])
        return len(failed)

    def suggest(self, records: Sequence[Record]) -> Params | None:
        """The values that TPE or random search tries next, never ones that were tried; None if all were.

        Samplers are asked in a copy of the study, so that a repeated answer leaves no trace, and seeded by the number
        of the trial, so that a sweep that was interrupted goes on as if it had not been.
        """
        import optuna

        tried = [record.params for record in records]
        trials = self._study.get_trials(deepcopy=False)
        for attempt in range(_ATTEMPTS):
            scratch = optuna.create_study(
                direction=self.sweep.direction,
                sampler=_sampler(self.sweep.sampler, self.sweep.seed + 1009 * len(trials) + attempt),
            )
            scratch.add_trials(trials)
            asked = scratch.ask(self._distributions)
            params = {key: self.axes[key].snap(asked.params[key]) for key in self.axes}
            if params not in tried:
                return params
        values = self.sweep.finite_values()
        rest = [point for point in grid_points(values) if point not in tried] if values else []
        return rest[(self.sweep.seed + len(trials)) % len(rest)] if rest else None

    def _trial(self, number: int) -> optuna.trial.Trial:
        import optuna

        # Also for trials of an earlier process: Optuna has no public way back to a running one.
        return optuna.trial.Trial(self._study, self._study.get_trials(deepcopy=False)[number]._trial_id)


def _record(trial: optuna.trial.FrozenTrial) -> Record:
    states: dict[str, State] = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}
    state = states.get(trial.state.name, "running")
    reports = dict(sorted(trial.intermediate_values.items()))
    value = trial.value if state == "complete" else next(reversed(reports.values()), None)
    return Record(
        number=trial.number,
        state=state,
        params=dict(trial.params or trial.system_attrs.get("fixed_params", {})),
        value=value,
        seconds=trial.user_attrs.get("seconds"),
        stage=trial.user_attrs.get("stage", ""),
        error=trial.user_attrs.get("error", ""),
        reports=reports,
    )


def _with_start(space: Mapping[str, Axis], start: Params) -> dict[str, Axis]:
    axes: dict[str, Axis] = {}
    for key, axis in space.items():
        values = tuple(axis.values() or ())
        axes[key] = Choices(values if start[key] in values else (*values, start[key]))
    return axes


def _distribution(axis: Axis) -> optuna.distributions.BaseDistribution:
    import optuna.distributions as kinds

    if isinstance(axis, Choices):
        return kinds.CategoricalDistribution(axis.listed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that `high` is no multiple of the step away: the last value is below it
        if axis.whole:
            return kinds.IntDistribution(int(axis.low), int(axis.high), axis.log, int(axis.step or 1))
        return kinds.FloatDistribution(axis.low, axis.high, axis.log, axis.step)


def _sampler(name: str, seed: int) -> optuna.samplers.BaseSampler:
    import optuna

    if name == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=5)


def make_pruner(sweep: SweepSettings) -> optuna.pruners.BasePruner:
    """The pruner that SPACE.yaml names.

    Raises:
        ConfigError: it does not take the options; the message lists those that it takes.
    """
    import optuna

    kinds = {
        "none": optuna.pruners.NopPruner,
        "median": optuna.pruners.MedianPruner,
        "successive_halving": optuna.pruners.SuccessiveHalvingPruner,
        "hyperband": optuna.pruners.HyperbandPruner,
        "threshold": optuna.pruners.ThresholdPruner,
    }
    kind = kinds[sweep.pruner]
    try:
        return cast("optuna.pruners.BasePruner", kind(**sweep.pruner_options))
    except (TypeError, ValueError) as error:
        where = sweep.where.get("pruner_options", sweep.where.get("pruner", str(sweep.path)))
        known = ", ".join(inspect.signature(kind).parameters)
        raise ConfigError(f"{where}: pruner_options: {error}; {sweep.pruner} takes {known}") from None
