"""What models answer to prompts of the pairs, greedily; kept beside their scores."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simpo.engines.base import Failure, Request
from simpo.errors import DataError, ModelError
from simpo.evals.pairs.kept import identity_of_weights
from simpo.evals.pairs.measure import ReadPairs, weights_dtype
from simpo.evals.pairs.settings import PairsSettings
from simpo.store import write_whole

if TYPE_CHECKING:
    from accelerate import Accelerator

    from simpo.sampling.policy import Policy

Place = tuple[str, int]
"""Source of a pair, and its row there."""
_BATCH = 16
_FORMAT = 1


@dataclass(frozen=True)
class Answer:
    """One response.

    Args:
        source, row: of the pair whose prompt it is.
        prompt, response: texts without special tokens.
        token_ids: of the response, with its end token.
        stopped: whether the model ended it.
    """

    source: str
    row: int
    prompt: str
    response: str
    token_ids: list[int]
    stopped: bool


def spread_prompts(read: ReadPairs, count: int) -> list[Place]:
    """Where up to `count` different prompts stand, evenly spread over the pairs."""
    first: dict[tuple[int, ...], int] = {}
    for at, ids in enumerate(read.data["prompt_ids"]):
        first.setdefault(tuple(ids), at)
    rows, places = list(first.values()), read.places()
    count = min(count, len(rows))
    return [places[rows[at * len(rows) // count]] for at in range(count)]


def kept_answers(
    path: Path,
    settings: PairsSettings,
    read: ReadPairs,
    places: Sequence[Place],
    accelerator: Accelerator,
    *,
    max_new_tokens: int,
) -> list[Answer]:
    """Greedy responses to the prompts at these places, as their pairs hold them; one process is to call it.

    They are read from `path` where it holds those of the same weights and prompts. A prompt that the model's pairs do
    not hold, or that fills its context, has none.

    Raises:
        ModelError: the model cannot be loaded, or its logits are not finite.
    """
    found = {place: at for at, place in enumerate(read.places())}
    prompts = {place: list(map(int, read.data[found[place]]["prompt_ids"])) for place in places if place in found}
    key = {
        "format": _FORMAT,
        "weights": identity_of_weights(settings.model_name_or_path, settings.model_revision),
        "prompts": [[*place, ids] for place, ids in prompts.items()],
        "dtype": weights_dtype(settings, accelerator),
        "max_new_tokens": max_new_tokens,
    }
    kept = _read(path, key)
    if kept is None:
        kept = _sample(settings, prompts, accelerator, max_new_tokens)
        write_whole(path, {"key": key, "answers": [asdict(answer) for answer in kept]})
    return kept


def _read(path: Path, key: dict[str, Any]) -> list[Answer] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return [Answer(**answer) for answer in found["answers"]] if found["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _sample(
    settings: PairsSettings, prompts: dict[Place, list[int]], accelerator: Accelerator, max_new_tokens: int
) -> list[Answer]:
    from tqdm.auto import tqdm

    from simpo.engines.transformers_engine import load_transformers_engine
    from simpo.sampling.policy import Policy
    from simpo.sampling.settings import PolicySettings

    policy = Policy(
        PolicySettings(
            model_name_or_path=settings.model_name_or_path,
            model_revision=settings.model_revision,
            trust_remote_code=settings.trust_remote_code,
        )
    )
    stops = _stop_ids(policy, settings)
    rooms = {place: min(max_new_tokens, (policy.context or 2**31) - len(ids)) for place, ids in prompts.items()}
    fitting = [place for place in prompts if rooms[place] > 0]
    requests = [Request(prompts[place], rooms[place], temperature=0.0, stop_ids=stops) for place in fitting]
    engine = load_transformers_engine(
        settings.model_name_or_path,
        batch_size=_BATCH,
        device=accelerator.device,
        dtype=weights_dtype(settings, accelerator),
        revision=settings.model_revision,
        trust_remote_code=settings.trust_remote_code,
    )
    answers = []
    with engine, tqdm(total=len(requests), unit="response", desc=f"Answers of {settings.name}") as bar:
        for result in engine.generate(requests):
            sample, place = result.outcome, fitting[result.number]
            if isinstance(sample, Failure):
                raise ModelError(f"{settings.model_name_or_path}: {sample.error}")
            prompt = str(policy.tokenizer.decode(prompts[place], skip_special_tokens=True)).strip()
            ids = list(sample.token_ids or [])
            answers.append(Answer(*place, prompt, sample.text, ids, sample.finish_reason == "stop"))
            bar.update()
    return answers


def _stop_ids(policy: Policy, settings: PairsSettings) -> tuple[int, ...]:
    """What ends a response: what the model lists, and the end of a turn of the template, where there is one."""
    from simpo.data.chat import inspect_template, own_template, resolve_chat_template

    try:
        template = resolve_chat_template(settings.chat_template, policy.tokenizer) or own_template(policy.tokenizer)
    except DataError:  # none: prompts are plain texts
        return policy.stop_ids
    end = inspect_template(policy.tokenizer, template).end_of_turn
    return policy.stop_ids if end is None else tuple(sorted({*policy.stop_ids, end}))
