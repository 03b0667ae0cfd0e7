"""One YAML with a section for each step -> checked settings of `simpo onpolicy` and `simpo iterate`.

Sections hold what the verbs hold, and are checked by the same dataclasses. Folders, and from the second round on the
model, belong to the pipeline.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from simpo.errors import ConfigError
from simpo.onpolicy.annotate import AnnotateSettings
from simpo.onpolicy.binarize import BinarizeSettings
from simpo.onpolicy.settings import GenerateSettings
from simpo.settings.entries import COMMAND_LINE, Entry, Section, read_overrides, read_sections, read_yaml
from simpo.settings.flat import fit_entries
from simpo.settings.nested import fit_mapping
from simpo.settings.oldnames import RENAMED
from simpo.settings.resolve import check_layers

SECTIONS = ("generate", "annotate", "binarize", "train", "evaluate", "launch")
LAUNCHED = ("generate", "annotate", "train")
"""Steps that a launcher may start."""
_FOLDERS = "folders lie in output_dir"
_RETRY = "run the step alone with it, on the file in the folder settings, before the next step has begun"
_HUB = "a round's model stays on this disk"
_PAIRS = "a round trains on its own pairs; binarize.test_size holds some out"
_SAME_POLICY = "it is the policy of `generate`"
OWNED: dict[str, dict[str, str]] = {
    "generate": {"output_dir": _FOLDERS, "retry_errors": _RETRY},
    "annotate": {"generations": _FOLDERS, "output_dir": _FOLDERS, "retry_errors": _RETRY},
    "binarize": {"generations": _FOLDERS, "scores": _FOLDERS, "output_dir": _FOLDERS},
    "train": {
        "output_dir": _FOLDERS,
        "run_name": "runs are named after their folders",
        "resume_from_checkpoint": "an interrupted round goes on by itself",
        **dict.fromkeys(("model_name_or_path", "model_revision"), "the first round trains the model of `generate`"),
        **dict.fromkeys(("push_to_hub", "hub_model_id", "hub_token"), _HUB),
        **dict.fromkeys(
            ("dataset_mixer", "dataset_name", "dataset_splits", "dataset_configs", "dataset_columns",
             "dataset_weights", "eval_dataset_mixer", "test_size"),
            _PAIRS,
        ),
    },
    "evaluate": {
        **dict.fromkeys(("output_dir", "generations"), _FOLDERS),
        "retry_errors": _RETRY,
        **dict.fromkeys(("model_name_or_path", "model_revision", "engine"), _SAME_POLICY),
    },
    "launch": {},
}  # fmt: skip
"""Section -> setting that the pipeline gives -> why, or what to do."""

# What evaluation does not take over from `generate`: which prompts, and how many responses at what temperature.
_NOT_INHERITED = ("dataset_split", "max_prompts", "seeds", "num_responses", "temperature")
_OF_A_DATASET = ("dataset_config", "prompt_column")
_SCORING = ("annotators", "prompts_per_batch", "use_cpu")


@dataclass(frozen=True)
class Launch:
    """How a step is started: the name or path of an accelerate configuration, and its processes."""

    accelerate: str
    num_processes: int | None = None

    def __post_init__(self) -> None:
        if self.num_processes is not None and self.num_processes < 1:
            raise ConfigError(f"num_processes: {self.num_processes} must be at least 1")


@dataclass(frozen=True)
class Evaluation:
    """How the policy of a round is measured: its answers to the same prompts, their scores, and whose scores count."""

    generate: GenerateSettings
    annotate: AnnotateSettings
    annotator: str


@dataclass(frozen=True)
class Recipe:
    """Everything that the file says.

    Attributes:
        output_dir: everything is written here.
        generate, annotate, binarize: settings of the steps; their folders are named anew for each round.
        train: settings of a run, by present names; model, data and folder are those of a round. None without a section.
        evaluate: None without a section.
        launch: step -> how it is started, None: plainly; for the others the command line says it.
        prompts_per_round: different prompts for every round, so many; None: all in every round.
        keep_models: whose weights stay.
    """

    output_dir: Path
    generate: GenerateSettings
    annotate: AnnotateSettings
    binarize: BinarizeSettings
    train: dict[str, Any] | None = None
    evaluate: Evaluation | None = None
    launch: dict[str, Launch | None] = field(default_factory=dict)
    prompts_per_round: int | None = None
    keep_models: Literal["all", "last"] = "all"


@dataclass(frozen=True)
class _Top:
    """The keys of the file; sections are checked on their own."""

    output_dir: str
    generate: dict[str, Any]
    annotate: dict[str, Any]
    binarize: dict[str, Any] = field(default_factory=dict)
    train: list[Any] | dict[str, Any] | str | None = None
    evaluate: dict[str, Any] | None = None
    launch: dict[str, Any] = field(default_factory=dict)
    prompts_per_round: int | None = None
    keep_models: Literal["all", "last"] = "all"

    def __post_init__(self) -> None:
        if not self.output_dir:
            raise ConfigError("output_dir: must not be empty")
        if self.prompts_per_round is not None and self.prompts_per_round < 1:
            raise ConfigError(
                f"prompts_per_round: {self.prompts_per_round} must be at least 1, or null for all prompts"
            )


class _Read:
    """What was read, section by section, and what is wrong with it."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.top: dict[str, Entry] = {}
        self.layers: dict[str, list[tuple[str, list[Entry]]]] = {name: [] for name in SECTIONS}
        self.problems: list[str] = []

    def add_file(self, sections: Sequence[Section]) -> None:
        for section in sections:
            name = section.entry.key
            self.top[name] = section.entry
            for layer in section.layers if name in SECTIONS else []:
                if isinstance(layer, list):
                    self._add(name, layer)
                elif name == "train":
                    self._add_training_file(layer)

    def add_overrides(self, words: Sequence[str]) -> None:
        plain: list[str] = []
        for word in words:
            section, dot, rest = word.partition("=")[0].removeprefix("--").partition(".")
            if not dot:
                plain.append(word)
            elif section not in SECTIONS:
                close = difflib.get_close_matches(section, SECTIONS, n=1)
                advice = f"did you mean --{close[0]}.{rest}?" if close else f"write one of {', '.join(SECTIONS)}"
                self.problems.append(f"{COMMAND_LINE}: {word}: there is no section {section!r}; {advice}")
            else:
                entries = read_overrides([f"--{word.removeprefix(f'--{section}.')}"])
                self._add(section, entries)
                self.top.setdefault(section, Entry(section, {}, None, COMMAND_LINE, section, {}))
        for entry in read_overrides(plain):
            if entry.key in SECTIONS:
                self.problems.append(f"{COMMAND_LINE}: --{entry.key}: write --{entry.key}.SETTING=value")
            self.top[entry.key] = entry

    def _add(self, name: str, entries: Sequence[Entry]) -> None:
        kept = []
        for entry in entries:
            where = f"{entry.where}: {name}"
            reason = OWNED[name].get(RENAMED.get(entry.key, entry.key))
            if reason is not None:
                self.problems.append(f"{where}: {entry.key} is not to be written here: {reason}; leave it out")
            else:
                kept.append(replace(entry, where=where))
        self.layers[name].append(("", kept))

    def _add_training_file(self, entry: Entry) -> None:
        # A file of a run says model, data and folder too: a round has its own in their place.
        try:
            entries = read_yaml(Path(entry.value))
        except ConfigError as error:
            self.problems.append(f"{entry.where}: train: {error}")
            return
        kept = [one for one in entries if RENAMED.get(one.key, one.key) not in OWNED["train"]]
        self.layers["train"].append((Path(entry.value).stem, kept))

    def merged(self, name: str) -> dict[str, Entry]:
        return {entry.key: entry for _, layer in self.layers[name] for entry in layer}

    def source_of(self, name: str) -> str:
        return f"{self.top[name].where if name in self.top else self.source}: {name}"

    def fit(self, owner: type[Any], name: str, entries: dict[str, Entry], given: dict[str, Any]) -> Any:
        """The settings of a section, or None where something is wrong with them."""
        try:
            return fit_entries(owner, entries, self.source_of(name), given)
        except ConfigError as error:
            self.problems += _problems_of(error)
            return None

    def stop_if_any(self) -> None:
        found = list(dict.fromkeys(self.problems))
        if found:
            head = f"{len(found)} settings are wrong\n  " if len(found) > 1 else ""
            raise ConfigError(head + "\n  ".join(found))


def _problems_of(error: ConfigError) -> list[str]:
    """One problem a line, without the line that counts them."""
    lines = [line.strip() for line in str(error).splitlines()]
    return lines[1:] if lines[0].endswith("settings are wrong") else lines


def read_recipe(files: Sequence[str | Path], overrides: Sequence[str] = (), *, rounds: bool = False) -> Recipe:
    """Read and check a file with sections.

    Args:
        files: YAML files; a later one wins, setting by setting.
        overrides: `--section.setting=value` and `--output_dir=...` words; they win over every file.
        rounds: the sections `train` and `evaluate` must be there.

    Raises:
        ConfigError: all that is wrong, each with file and line, section, setting, and what to write instead.
    """
    paths = [Path(file) for file in files]
    read = _Read(", ".join(map(str, paths)))
    for path in paths:
        read.add_file(read_sections(path))
    read.add_overrides(overrides)
    if rounds:
        for name in ("train", "evaluate"):
            if name not in read.top or read.top[name].value is None:
                read.problems.append(f"{read.source}: section {name} is missing; docs/on-policy.md shows one")
    try:
        top = fit_entries(_Top, read.top, read.source)
    except ConfigError as error:
        read.problems += _problems_of(error)
        read.stop_if_any()
        raise
    nowhere = {"output_dir": top.output_dir}
    generate = read.fit(GenerateSettings, "generate", read.merged("generate"), nowhere)
    annotate = read.fit(AnnotateSettings, "annotate", read.merged("annotate"), {**nowhere, "generations": ""})
    folders = {**nowhere, "generations": "", "scores": ""}
    binarize = read.fit(BinarizeSettings, "binarize", read.merged("binarize"), folders)
    launch = _read_launch(read)
    if annotate is not None and binarize is not None:
        _check_annotator(read, "binarize", binarize.annotator, annotate)
    train = _read_train(read) if top.train is not None else None
    evaluate = _read_evaluate(read, annotate, binarize, nowhere) if top.evaluate is not None else None
    read.stop_if_any()
    return Recipe(
        Path(top.output_dir), generate, annotate, binarize, train, evaluate, launch, top.prompts_per_round,
        top.keep_models,
    )  # fmt: skip


def _read_launch(read: _Read) -> dict[str, Launch | None]:
    found: dict[str, Launch | None] = {}
    for key, entry in read.merged("launch").items():
        if key not in LAUNCHED:
            read.problems.append(f"{entry.where}: unknown step {key!r}; write one of {', '.join(LAUNCHED)}")
            continue
        value = {"accelerate": entry.value} if isinstance(entry.value, str) else entry.value
        if value is None:
            found[key] = None
            continue
        if not isinstance(value, Mapping):
            read.problems.append(f"{entry.where}: {key}: write a name, {{accelerate: NAME, num_processes: N}}, or null")
            continue
        try:
            found[key] = fit_mapping(Launch, value, key)
        except ConfigError as error:
            read.problems += [f"{entry.where}: {line}" for line in _problems_of(error)]
    return found


def _check_annotator(read: _Read, name: str, annotator: str | None, annotate: AnnotateSettings) -> None:
    """Whose scores count must be settled before hours are spent on them."""
    names = list(annotate.annotators)
    where = read.merged(name)["annotator"].where if "annotator" in read.merged(name) else read.source_of(name)
    if annotator is None and len(names) > 1:
        read.problems.append(f"{where}: annotator is missing; name one of {', '.join(names)}")
    if annotator is not None and annotator not in names:
        close = difflib.get_close_matches(annotator, names, n=1)
        advice = f"did you mean {close[0]!r}?" if close else f"write one of {', '.join(names)}"
        read.problems.append(f"{where}: annotator: there is no {annotator!r}; {advice}")


def _read_train(read: _Read) -> dict[str, Any] | None:
    policy = read.merged("generate")
    model = policy["model_name_or_path"].value if "model_name_or_path" in policy else "model"
    # what the policy needs to be loaded and asked, its training needs as well
    shared = [policy[key] for key in ("trust_remote_code", "chat_template") if key in policy]
    own = {"model_name_or_path": model, "dataset_mixer": {"pairs": 1.0}, "output_dir": "model"}
    layers = [("", shared), *read.layers["train"], ("", [_pipelines(key, value) for key, value in own.items()])]
    try:
        values = check_layers(layers, read.source_of("train"))
    except ConfigError as error:
        read.problems += _problems_of(error)
        return None
    return {key: value for key, value in values.items() if key not in own}


def _pipelines(key: str, value: Any) -> Entry:
    return Entry(key, value, value if isinstance(value, str) else None, "the pipeline", key, value)


def _read_evaluate(
    read: _Read, annotate: AnnotateSettings | None, binarize: BinarizeSettings | None, given: dict[str, Any]
) -> Evaluation | None:
    own = read.merged("evaluate")
    if "dataset_name" not in own and "dataset_split" not in own:
        read.problems.append(
            f"{read.source_of('evaluate')}: dataset_split, or dataset_name, is missing: prompts that are trained on "
            "say nothing of others; write e.g. dataset_split: test_prefs"
        )
    left = {*_NOT_INHERITED, *(_OF_A_DATASET if "dataset_name" in own else ())}
    inherited = {key: entry for key, entry in read.merged("generate").items() if key not in left}
    asking = {key: entry for key, entry in own.items() if key not in ("annotators", "prompts_per_batch", "annotator")}
    asked = dict(given)
    asked |= {"temperature": 0.0} if "temperature" not in own else {}
    asked |= {"num_responses": 1} if not {"seeds", "num_responses"} & own.keys() else {}
    generate = read.fit(GenerateSettings, "evaluate", {**inherited, **asking}, asked)
    scoring = read.merged("annotate") | {key: entry for key, entry in own.items() if key in _SCORING}
    scored = read.fit(AnnotateSettings, "evaluate", scoring, {**given, "generations": ""})
    if generate is None or scored is None or binarize is None:
        return None
    named = own["annotator"].value if "annotator" in own else None
    if named is None and binarize.annotator in scored.annotators:
        named = binarize.annotator
    _check_annotator(read, "evaluate", named, scored)
    counting = str(named) if named is not None else next(iter(scored.annotators))
    kind = scored.annotators.get(counting, {}).get("kind")
    if kind in ("pairrm", "judge"):
        read.problems.append(
            f"{read.source_of('evaluate')}: annotators.{counting}: kind: {kind} ranks the responses to one prompt "
            "against each other, which compares no policies; give evaluate annotators with a reward_model or a function"
        )
    return Evaluation(generate, scored, counting)
