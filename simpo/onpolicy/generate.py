"""`simpo generate`: several responses of the policy to each prompt."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from typing import Any, cast

from simpo.engines.base import Engine, Failure, Request, Sample
from simpo.errors import DataError
from simpo.onpolicy.prompts import read_prompts
from simpo.onpolicy.settings import GenerateSettings
from simpo.sampling.loop import Outcomes, Processes, Work, group_by_length, sample_into
from simpo.sampling.policy import Policy, build_engine, weights_fingerprint
from simpo.sampling.prompts import Prompt
from simpo.store import Store

_EXAMPLES = 5


def run_generate(settings: GenerateSettings, engine: Engine | None = None) -> dict[str, Any]:
    """Sample responses to all prompts into `output_dir`; go on where an earlier run was interrupted.

    Args:
        settings: what to ask, how, and where the responses go.
        engine: the policy, ready; None: as the settings say. It is loaded only where something is left to do.

    Returns:
        Numbers of the whole set: see `summarise`.

    Raises:
        ConfigError, DataError, ModelError, EngineError, StoreError: with what to do about it. What was done stays.
    """
    processes = Processes(settings)
    policy = Policy(settings)
    prompts, repeated = read_prompts(settings)
    policy.prepare(prompts)
    seeds = cast(Sequence[int], settings.seeds)
    at_once = max(1, settings.batch_size // len(seeds))  # prompts
    stop_ids = policy.stop_ids

    def requests_of(prompt: Prompt) -> list[Request]:
        return [_request(settings, policy, prompt, seed, stop_ids) for seed in seeds]

    def record_of_prompt(prompt: Prompt, outcomes: Outcomes) -> dict[str, Any]:
        return record_of(prompt, seeds, outcomes)

    def finish(store: Store) -> dict[str, Any]:
        summary, lines = summarise(store.records(), repeated)
        print("\n".join(lines))
        return summary

    work = Work(group_by_length(prompts, at_once), requests_of, record_of_prompt)
    identity = _identity(settings, prompts) | {"stop_ids": list(stop_ids), "context": policy.context}
    again = _failed if settings.retry_errors else None
    store = Store(settings.output_dir, identity, rank=processes.rank, again=again)

    def open_engine() -> AbstractContextManager[Engine]:
        return nullcontext(engine) if engine is not None else closing(build_engine(settings, at_once * len(seeds)))

    return sample_into(store, work, open_engine, processes, finish=finish)


def _failed(record: dict[str, Any]) -> bool:
    return record.get("error") is not None


def _identity(settings: GenerateSettings, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """What the responses depend on; the rest (devices, batch size, patience) may change from one start to the next."""
    names = (
        "model_name_or_path", "model_revision", "dtype", "dataset_name", "dataset_config", "dataset_split",
        "prompt_column", "text_prompts", "seeds", "temperature", "top_p", "max_new_tokens", "engine", "server_api",
        "server_model",
    )  # fmt: skip
    digest = hashlib.blake2b(digest_size=12)
    for prompt in prompts:
        digest.update(f"{prompt.key} {prompt.row} {prompt.ids} {prompt.columns}\n".encode())
    known = {name: getattr(settings, name) for name in names}
    # a server's weights are its own business
    weights = None if settings.engine == "server" else weights_fingerprint(settings.model_name_or_path)
    return {**known, "weights": weights, "prompts": digest.hexdigest()}


def _request(
    settings: GenerateSettings, policy: Policy, prompt: Prompt, seed: int, stop_ids: tuple[int, ...]
) -> Request:
    return Request(
        prompt.ids,
        max_new_tokens=policy.room(prompt, settings.max_new_tokens),
        temperature=settings.temperature,
        top_p=settings.top_p,
        seed=seed,
        stop_ids=stop_ids,
        text=prompt.text,
        messages=None if isinstance(prompt.content, str) else prompt.content,
        template_arguments=prompt.arguments,
    )


def record_of(prompt: Prompt, seeds: Sequence[int], outcomes: Sequence[Sample | Failure]) -> dict[str, Any]:
    """What is kept of a prompt: its responses in the order of the seeds, and what went wrong with the others."""
    if prompt.error is not None:
        return {**prompt.record(), "responses": [], "error": prompt.error}
    responses = [
        {"text": found.text, "finish_reason": found.finish_reason, "tokens": found.tokens, "seed": seed}
        for seed, found in zip(seeds, outcomes, strict=True)
        if isinstance(found, Sample)
    ]
    failed = [f"seed {seed}: {found.error}" for seed, found in zip(seeds, outcomes, strict=True)
              if isinstance(found, Failure)]  # fmt: skip
    return {**prompt.record(), "responses": responses, "error": "; ".join(failed) or None}


def summarise(records: Iterator[dict[str, Any]], repeated: int) -> tuple[dict[str, Any], list[str]]:
    """Numbers of a whole set, and the account of it for people.

    Raises:
        DataError: no prompt has a response.
    """
    numbers: Counter[str] = Counter(repeated_rows=repeated)
    causes: dict[str, list[int]] = {}
    for record in records:
        responses = record["responses"]
        texts = [response["text"] for response in responses]
        numbers["prompts"] += 1
        numbers["responses"] += len(responses)
        numbers["tokens"] += sum(max(response["tokens"], 0) for response in responses)
        numbers["cut"] += sum(response["finish_reason"] == "length" for response in responses)
        numbers["empty"] += sum(not text.strip() for text in texts)
        numbers["all_equal"] += len(texts) > 1 and len(set(texts)) == 1
        if record["error"] is not None:
            numbers["errors"] += 1
            causes.setdefault(record["error"], []).append(record["row"])
    lines = [f"{numbers['responses']} responses to {numbers['prompts']} prompts, {numbers['tokens']} tokens"]
    for name, text in (
        ("repeated_rows", "rows repeat an earlier prompt and were not asked again"),
        ("cut", "responses were cut at max_new_tokens or at the end of the context"),
        ("empty", "responses are empty"),
        ("all_equal", "prompts have responses that are all equal"),
        ("errors", "prompts have errors:"),
    ):
        if numbers[name]:
            lines.append(f"  {numbers[name]} {text}")
    for cause, rows in causes.items():
        more = ", ..." if len(rows) > _EXAMPLES else ""
        lines.append(f"    row{'s' * (len(rows) > 1)} {', '.join(map(str, rows[:_EXAMPLES]))}{more}: {cause}")
    keys = ("prompts", "responses", "tokens", "cut", "empty", "all_equal", "errors", "repeated_rows")
    if not numbers["responses"]:
        raise DataError("no prompt has a response; " + "; ".join(line.strip() for line in lines[-len(causes) :]))
    return {key: numbers[key] for key in keys}, lines
