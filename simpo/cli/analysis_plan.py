"""What `simpo analyze` is asked for, checked before anything heavy loads."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

from simpo.errors import ConfigError
from simpo.evals.manifest import run_manifest
from simpo.evals.pairs.settings import PairsSettings
from simpo.evals.run import read_eval_settings

_NO_INITIAL = "none"


@dataclass(frozen=True)
class Plan:
    """What is analyzed.

    Args:
        settings: how pairs are read and scored, by the name of each model; the first decides for all.
        initial: settings of the initial policy; None where there is none.
        implied: whether nobody named it, so that it may be missing.
        output: folder of everything.
        prompts, max_new_tokens: of the greedy answers.
        beta: scale of margins; 1 leaves them in nats per token.
    """

    settings: list[PairsSettings]
    initial: PairsSettings | None
    implied: bool
    output: Path
    prompts: int
    max_new_tokens: int
    beta: float

    @classmethod
    def of(
        cls,
        models: Sequence[str],
        names: Sequence[str],
        overrides: Sequence[str],
        *,
        initial: str | None,
        output: Path,
        prompts: int,
        max_new_tokens: int,
    ) -> Plan:
        """Check what was asked for.

        Raises:
            ConfigError: what is wrong, and what to write instead.
        """
        if max_new_tokens < 1:
            raise ConfigError("--max-new-tokens: must be at least 1; --prompts 0 leaves answers out")
        for key in ("model_name_or_path", "name", "output_dir"):
            if any(re.match(rf"--{key}(=|$)", word) for word in overrides):
                raise ConfigError(f"--{key}: simpo analyze has --models, --names and --output in its place")
        _check_different(models)
        if names and len(names) != len(models):
            raise ConfigError(f"--names: {len(names)} for {len(models)} models; write one for each")
        if len(set(names)) < len(names):
            raise ConfigError("--names: two models have the same one; write different names")
        first = read_eval_settings("pairs", [], [f"--model_name_or_path={models[0]}", *overrides])
        assert isinstance(first, PairsSettings)
        told = first.resolve()  # of the first for all: each model is to see the same texts
        same = {key: told[key] for key in PairsSettings.OF_TOKENS}
        called = list(names) or short_names(models)
        found = [
            replace(first, model_name_or_path=model, name=name, output_dir=str(output), **same)
            for model, name in zip(models, called, strict=True)
        ]
        start = _initial_of_all(models) if initial is None else initial
        policy = None
        if start and start != _NO_INITIAL:
            policy = next((one for one in found if _place(one.model_name_or_path) == _place(start)), None)
            name = next(name for name in ("initial", "initial policy", "the initial one") if name not in called)
            policy = policy or replace(found[0], model_name_or_path=start, name=name, model_revision=None)
        files = [file_name(one.name) for one in ([*found, policy] if policy and policy not in found else found)]
        if len(set(files)) < len(files):
            raise ConfigError("--names: names of models differ only in characters that files cannot have; give others")
        return cls(found, policy, initial is None, output, prompts, max_new_tokens, first.beta or 1.0)


def _check_different(models: Sequence[str]) -> None:
    seen: dict[str, str] = {}
    for model in models:
        if not model:
            raise ConfigError("--models: one is empty")
        if _place(model) in seen:
            again = "" if seen[_place(model)] == model else f", as {seen[_place(model)]} and as {model}"
            raise ConfigError(f"--models: {model} is there twice{again}; name each model once")
        seen[_place(model)] = model


def _place(model: str) -> str:
    """One spelling of a folder; hub names as they are."""
    return str(Path(model).resolve()) if Path(model).exists() else model


def _initial_of_all(models: Sequence[str]) -> str:
    """What the first preference run began with, else the first run of any kind or adapter; empty where nobody says."""
    preference = [model for model in models if "gamma" in run_manifest(model)]
    return next(filter(None, map(_initial_of, [*preference, *models])), "")


def _initial_of(model: str) -> str:
    """What the run of a model began with, or the base of an adapter; empty where nobody says."""
    from simpo.sampling.policy import base_model

    told = str(run_manifest(model).get("settings", {}).get("model_name_or_path") or "")
    base = base_model(model, None)
    return told or (base if base != model else "")


def other_starts(plan: Plan, policy: PairsSettings) -> list[str]:
    """Notes on preference runs that began with another model than the one they are measured against."""
    found = []
    for one in plan.settings:
        manifest = run_manifest(one.model_name_or_path)
        start = manifest.get("settings", {}).get("model_name_or_path", "")
        if "gamma" in manifest and start and _place(start) != _place(policy.model_name_or_path):
            found.append(
                f"{one.name} began with {start}; it is measured against {policy.model_name_or_path} all the same"
            )
    return found


def short_names(models: Sequence[str]) -> list[str]:
    """The last part of each path or hub name, and as many before it as it takes to tell them apart.

    >>> short_names(["outputs/a/checkpoint-9", "outputs/b/checkpoint-9", "outputs/c"])
    ['a/checkpoint-9', 'b/checkpoint-9', 'c']
    """
    parts = [PurePath(model).parts for model in models]
    found = []
    for own in parts:
        others = [other for other in parts if other is not own]
        size = next((n for n in range(1, len(own)) if all(other[-n:] != own[-n:] for other in others)), len(own))
        found.append("/".join(own[-size:]) if own else ".")
    return found


def file_name(name: str) -> str:
    """A name as that of a file.

    >>> file_name("a/checkpoint-9")
    'a_checkpoint-9'
    """
    return re.sub(r"[^\w.+=-]+", "_", name) or "_"
