"""One flat YAML file (or several, a later one wins) plus overrides -> typed, checked settings of a run.

Everything that can be known from the text alone is checked before `PreferenceConfig` is built, because building it
starts accelerate and looks for devices.
"""

import contextlib
import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from simpo.checks import check_no_secrets, find_problems, is_number
from simpo.config import DataConfig, ModelSettings, PreferenceConfig, defaults_of
from simpo.errors import ConfigError
from simpo.objectives import OBJECTIVES, all_knobs
from simpo.redact import redact
from simpo.settings.entries import COMMAND_LINE, Entry, read_overrides, read_yaml
from simpo.settings.fieldtypes import FieldType, Misfit, field_types
from simpo.settings.oldnames import ALIASES, GAMMA_NAMES, OLD_NAMES, RENAMED, SFT_ONLY, SWEEP_ONLY, convert, show

Paths = str | Path | Sequence[str | Path]

# The loss_type of TRL's trainers, where it names a loss that is an objective here.
LOSS_TYPES_ELSEWHERE = {name: name for name in OBJECTIVES} | {"kto_pair": "kto", "slic": "slic-hf"}

# model_init_kwargs is passed on to from_pretrained; these have a setting of their own.
_INIT_SETTINGS = {
    "attn_implementation": "attn_implementation",
    "dtype": "dtype",
    "revision": "model_revision",
    "torch_dtype": "dtype",
    "trust_remote_code": "trust_remote_code",
}


@dataclass(frozen=True)
class RunSettings:
    """Everything that a run was told.

    Attributes:
        model: what is trained.
        data: what is read.
        training: how it is trained.
        resolved: every setting that was given, by its present name, converted and typed; secrets are masked.
        conversions: one line `old -> new` per old name or reinterpreted value.
        files: the settings files, in the order in which they were read.
        composed: several files were given, or overrides: no one file says what `resolved` does.
    """

    model: ModelSettings
    data: DataConfig
    training: PreferenceConfig
    resolved: dict[str, Any]
    conversions: list[str]
    files: list[Path]
    composed: bool = False


class _Report:
    """Collects problems, so that one run of the checks shows them all."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, where: str, text: str) -> None:
        self.lines.append(f"{where}: {text}")

    def stop_if_any(self) -> None:
        if len(self.lines) == 1:
            raise ConfigError(self.lines[0])
        if self.lines:
            raise ConfigError(f"{len(self.lines)} settings are wrong\n  " + "\n  ".join(self.lines))


@dataclass(frozen=True)
class _Checked:
    values: dict[str, Any]
    entries: dict[str, Entry]
    conversions: list[str]
    files: list[Path]


def read_settings(files: Paths, overrides: Sequence[str] = ()) -> RunSettings:
    """Read, convert, check and build the settings of a run.

    Args:
        files: settings files; a setting in a later one replaces that of an earlier one. None are needed where overrides
            say everything.
        overrides: `--key=value` or `--key value`; they win over every file. Values are YAML.

    Raises:
        ConfigError: a file cannot be read, a setting is unknown, of the wrong type, out of bounds, or contradicts
            another one. The message names file and line, setting, value, and what to write instead.
    """
    checked = _check(files, overrides)
    where = ", ".join(str(path) for path in checked.files) or COMMAND_LINE
    parts: dict[type, dict[str, Any]] = {ModelSettings: {}, DataConfig: {}, PreferenceConfig: {}}
    for key, value in checked.values.items():
        parts[field_types()[key].owner][key] = value
    try:
        model, data = ModelSettings(**parts[ModelSettings]), DataConfig(**parts[DataConfig])
        training = PreferenceConfig(**parts[PreferenceConfig])
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    except (ValueError, TypeError, ImportError, OSError) as error:  # transformers' own checks
        raise ConfigError(f"{where}: transformers refuses these settings: {error}") from error
    resolved = redact(checked.values)
    composed = len(checked.files) > 1 or bool(overrides)
    return RunSettings(model, data, training, resolved, checked.conversions, checked.files, composed)


def check_settings(files: Paths, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """All checks of `read_settings` that need no device: for a process that only starts others.

    Returns the settings that were given, by their present names, converted and typed.
    """
    return _check(files, overrides).values


def check_layers(layers: Sequence[tuple[str, Sequence[Entry]]], source: str) -> dict[str, Any]:
    """`check_settings` for entries that were read already, from the sections of a larger file, say.

    Args:
        layers: name and entries of each source; a later one wins.
        source: where they come from, for what is missing.
    """
    return _check_all(layers, [], source).values


def _check(files: Paths, overrides: Sequence[str]) -> _Checked:
    paths = [Path(files)] if isinstance(files, str | Path) else [Path(file) for file in files]
    if not paths and not overrides:
        raise ConfigError("no settings file is given; write e.g. simpo train training_configs/your-own-data.yaml")
    layers = [(path.stem, read_yaml(path)) for path in paths]
    return _check_all([*layers, ("", read_overrides(overrides))], paths, ", ".join(map(str, paths)) or COMMAND_LINE)


def _check_all(layers: Sequence[tuple[str, Sequence[Entry]]], paths: list[Path], source: str) -> _Checked:
    report = _Report()
    conversions: list[str] = []
    merged: dict[str, Entry] = {}
    for number, (name, entries) in enumerate(layers):
        layer = _convert_layer(entries, conversions, report)
        if number and name:
            _name_run(merged, layer, name)
        _merge(merged, layer, conversions)
    report.stop_if_any()
    values = _typed(merged, report)
    report.stop_if_any()
    _resolve_gamma(values, merged, conversions, report)
    report.stop_if_any()
    _check_together(values, merged, source, report)
    report.stop_if_any()
    if values.get("attn_implementation") is not None:
        conversions.append(
            f"attn_implementation: {values['attn_implementation']} -> simpo's packed attention, which alone knows "
            "shared prompts; the setting is taken as a preference and not used"
        )
    return _Checked(values, merged, list(dict.fromkeys(conversions)), paths)


def _convert_layer(layer: Sequence[Entry], conversions: list[str], report: _Report) -> dict[str, Entry]:
    """The entries of one source by their present names; unknown names and contradictions go to the report."""
    found: dict[str, Entry] = {}
    for entry in layer:
        try:
            converted = convert(entry.key, entry.value)
        except ValueError as error:
            report.add(entry.where, f"{entry.key}: {show(entry.value, entry.key)} {error}")
            continue
        if converted is not None:
            conversions.append(converted.line)
            if converted.key is None:
                continue
            # Only a renamed setting keeps its value, and with it the text that it was written as.
            text = entry.text if entry.key in RENAMED else None
            entry = entry.renamed(converted.key, converted.value, text)
        elif entry.key in GAMMA_NAMES:
            entry = entry.renamed("gamma", entry.value, entry.text)
        elif entry.key in ALIASES:
            entry = entry.renamed(ALIASES[entry.key], entry.value, entry.text)
        elif entry.key not in field_types():
            report.add(entry.where, f"unknown setting {entry.key!r}; {_nearest(entry.key)}")
            continue
        other = found.get(entry.key)
        if other is not None and other.written != entry.written and other.value != entry.value:
            report.add(
                entry.where,
                f"{entry.written}: {show(entry.given, entry.key)} contradicts "
                f"{other.written}: {show(other.given, entry.key)}; both mean {entry.key}, keep one",
            )
        found[entry.key] = entry
    return found


def _merge(merged: dict[str, Entry], layer: dict[str, Entry], conversions: list[str]) -> None:
    _change_objective(merged, layer, conversions)
    # gamma and gamma_beta_ratio say the same: whichever came last stands, unless one source gives both.
    for key, other in (("gamma", "gamma_beta_ratio"), ("gamma_beta_ratio", "gamma")):
        if key in layer and other not in layer:
            merged.pop(other, None)
    merged.update(layer)


def _change_objective(merged: dict[str, Entry], layer: dict[str, Entry], conversions: list[str]) -> None:
    """Where a later source names another objective, the settings of the former one go with it."""
    named = layer.get("objective")
    former = merged["objective"].value if "objective" in merged else defaults_of(PreferenceConfig)["objective"]
    if named is None or named.value == former:
        return
    for key in [key for key in merged if key in (*all_knobs(), "gamma")]:
        gone = merged.pop(key)
        conversions.append(
            f"{gone.written}: {show(gone.given)} ({gone.where}) -> nothing; it belongs to objective: {former}, and "
            f"{named.where} sets objective: {named.value}"
        )


def _name_run(merged: Mapping[str, Entry], layer: dict[str, Entry], name: str) -> None:
    """A later file that sets the objective, and not the run's folder or name, adds its own name to them."""
    if "objective" not in layer:
        return
    for key in ("output_dir", "run_name"):
        former = merged.get(key)
        if former is not None and key not in layer and isinstance(former.value, str) and former.value:
            value = f"{former.value.rstrip('/')}-{name}"
            layer[key] = former.renamed(key, value, value)


def _nearest(key: str) -> str:
    if key in SFT_ONLY:
        return "it belongs to SFT runs (simpo sft), leave it out"
    if key in SWEEP_ONLY:
        return "it belongs to the file of a search, the last one of simpo sweep"
    if key in ("dry_run", "no_audit", "overwrite", "strict"):
        return "it is an option of other verbs; --help lists those of this one"
    if key == "accelerate":
        return (
            "it is an option of simpo train, sft and reference; simpo plan calls it --launch-config, a sweep reads it "
            "in the file of its space"
        )
    names = [*field_types(), *ALIASES, *OLD_NAMES]
    close = difflib.get_close_matches(key.lower().replace("-", "_"), names, n=1)
    if not close:
        return "no setting has a similar name; docs/configuration.md lists them"
    present = RENAMED.get(close[0], "gamma_beta_ratio" if close[0] in GAMMA_NAMES else close[0])
    return f"did you mean {present!r}?"


def _typed(merged: Mapping[str, Entry], report: _Report) -> dict[str, Any]:
    values = {}
    for key, entry in merged.items():
        kind = FieldType.of_number() if key == "gamma" else field_types()[key]
        try:
            values[key] = kind.fit(entry.value, entry.text)
        except Misfit as misfit:
            advice = misfit.expected + _instead(key, entry.given)
            report.add(entry.where, f"{entry.written}: {show(entry.given, key)} {kind.fault}: write {advice}")
    return values


def _instead(key: str, given: Any) -> str:
    """What to write for a value that other packages take."""
    if key == "loss_type" and given in LOSS_TYPES_ELSEWHERE:
        return f"; for that loss write objective: {LOSS_TYPES_ELSEWHERE[given]} and no loss_type"
    if key in ("dataset_mixer", "eval_dataset_mixer") and isinstance(given, str):
        return f"; e.g. {{{given}: 1.0}}"
    return ""


def _resolve_gamma(values: dict[str, Any], merged: dict[str, Entry], conversions: list[str], report: _Report) -> None:
    """Replace gamma by gamma_beta_ratio = gamma / beta."""
    if "gamma" not in values:
        return
    gamma, entry = values.pop("gamma"), merged.pop("gamma")
    spec = OBJECTIVES.get(values.get("objective", defaults_of(PreferenceConfig)["objective"]))
    if spec is None or "gamma_beta_ratio" not in spec.knobs:  # told with the other settings that are not used
        values["gamma_beta_ratio"], merged["gamma_beta_ratio"] = gamma, entry
        return
    given = values.get("beta")
    beta = spec.knobs["beta"] if given is None else given
    if not is_number(beta) or beta <= 0:
        report.add(merged["beta"].where, f"beta: {show(beta)} must be above 0; the paper uses 2 to 10")
        return
    ratio = gamma / beta
    given = values.get("gamma_beta_ratio")
    if given is not None and abs(given - ratio) > 1e-6 * max(1.0, abs(ratio)):
        report.add(
            entry.where,
            f"{entry.written}: {show(gamma)} with beta: {show(beta)} means gamma_beta_ratio: {show(ratio)}, but "
            f"gamma_beta_ratio: {show(given)} is given too; keep gamma_beta_ratio only",
        )
        return
    if given is None:
        values["gamma_beta_ratio"] = ratio
        merged["gamma_beta_ratio"] = entry.renamed("gamma_beta_ratio", ratio, None)
    conversions.append(
        f"{entry.written}: {show(gamma)} -> gamma_beta_ratio: {show(values['gamma_beta_ratio'])} "
        f"({entry.written} / beta = {show(gamma)} / {show(beta)})"
    )


def _check_together(values: dict[str, Any], merged: Mapping[str, Entry], source: str, report: _Report) -> None:
    def where(*keys: str) -> str:
        return next((merged[key].where for key in keys if key in merged), source)

    if not values.get("model_name_or_path"):
        report.add(source, "model_name_or_path is missing; write a hub name or a model directory")
    if not values.get("dataset_mixer") and not values.get("dataset_name"):
        report.add(source, "dataset_mixer is missing; write dataset_mixer: {data/pairs.jsonl: 1.0}")
    for problem in find_problems({**defaults_of(PreferenceConfig), **values}):
        report.add(where(*problem.keys), problem.text)
    # These two hold plain values: their own checks are the checks, and building them touches no device.
    for part in (ModelSettings, DataConfig):
        given = {key: value for key, value in values.items() if field_types()[key].owner is part}
        try:
            part(**given)
        except ConfigError as error:
            named = [key for key in given if re.search(rf"(?<!\w){key}(?!\w)", str(error))]
            report.add(where(*named), str(error))
    adapter = [key for key in values if key.startswith("lora_") or key in ("use_dora", "use_rslora")]
    if adapter and "use_peft" not in values:
        report.add(
            where(*adapter), f"{adapter[0]} is set but use_peft is not; write use_peft: true, or false to train in full"
        )
    _check_init_kwargs(values, where("model_init_kwargs"), report)
    _check_trackers(values.get("report_to"), where("report_to"), report)


def _check_init_kwargs(values: Mapping[str, Any], where: str, report: _Report) -> None:
    for text in init_problems(values):
        report.add(where, text)
    options = values.get("model_init_kwargs")
    if isinstance(options, str) and not options.lstrip().startswith("{"):
        report.add(where, f"model_init_kwargs: {options!r} is not a mapping; write {{name: value}}")
    if not isinstance(options, dict):
        return
    for option, key in _INIT_SETTINGS.items():
        if option in options and key in values and options[option] != values[key]:
            inner = f"model_init_kwargs: {option}: {show(options[option])}"
            report.add(where, f"{inner} contradicts {key}: {show(values[key])}; keep {key}")


def init_problems(values: Mapping[str, Any]) -> list[str]:
    """What model_init_kwargs must not hold: secrets, and code that no setting of its own says is run."""
    options, problems = values.get("model_init_kwargs"), []
    if isinstance(options, str):
        with contextlib.suppress(ValueError):  # told elsewhere
            options = json.loads(options)
    try:
        check_no_secrets("model_init_kwargs", options)
    except ConfigError as error:
        problems.append(str(error))
    if isinstance(options, dict) and options.get("trust_remote_code") and not values.get("trust_remote_code"):
        problems.append("model_init_kwargs: trust_remote_code has a setting of its own; write trust_remote_code: true")
    return problems


def _check_trackers(names: Any, where: str, report: _Report) -> None:
    # The Trainer looks them up only after the model is loaded.
    known = {*INTEGRATION_TO_CALLBACK, "all", "none"}
    for name in [names] if isinstance(names, str) else names or []:
        if name not in known:
            report.add(where, f"report_to: {name!r} is no tracker; write none, wandb, tensorboard, trackio, or a list")
