"""`simpo generate`: responses of the policy to prompts, kept as they are made.

What is left to do follows from the data and the store alone. Batches are cut from all prompts, not from those that are
left, so a response is sampled beside the same others whether or not the run was interrupted.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tqdm import tqdm

from simpo.engines.base import Engine, Failure, Request, Sample
from simpo.errors import ConfigError, DataError, ModelError
from simpo.onpolicy.prompts import Prompt, Renderer, read_prompts
from simpo.onpolicy.settings import GenerateSettings
from simpo.store import Store

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_EXAMPLES = 5
_LONG = timedelta(days=30)


@dataclass
class _Plan:
    """What is asked, cut into groups that are sampled together."""

    prompts: list[Prompt]
    repeated: int
    stop_ids: tuple[int, ...]
    context: int | None
    groups: list[list[Prompt]] = field(default_factory=list)


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
    state = _Processes(settings)
    plan = _plan(settings)
    own = plan.groups[state.rank :: state.count]
    with ExitStack() as stack:
        again = _failed if settings.retry_errors else None
        store = Store(settings.output_dir, _identity(settings, plan), rank=state.rank, again=again)
        if state.rank == 0:
            stack.enter_context(store)  # the others read what it has mended
        state.wait()
        if state.rank > 0:
            stack.enter_context(store)
        _sample_groups(settings, plan, own, store, engine, quiet=state.rank > 0)
        state.wait()
        summary: dict[str, Any] = {}
        if state.rank == 0:
            summary, lines = summarise(store.records(), plan.repeated)
            store.finish(summary)
            print("\n".join(lines))
        state.wait()
    return summary


def _failed(record: dict[str, Any]) -> bool:
    return record.get("error") is not None


class _Processes:
    """The processes of this run: one, or those that a launcher started."""

    def __init__(self, settings: GenerateSettings) -> None:
        self.rank, self.count = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        self._state: Any = None
        if self.count > 1:
            from accelerate import PartialState

            # Ranks wait for the slowest one, which may take as long as the run; and CUDA must not start here where
            # vLLM is going to choose devices.
            self._state = PartialState(cpu=_on_cpu(settings) or settings.engine != "transformers", timeout=_LONG)

    def wait(self) -> None:
        """Until every process is here."""
        if self._state is not None:
            self._state.wait_for_everyone()


def _on_cpu(settings: GenerateSettings) -> bool:
    # `accelerate launch --cpu` says so by environment only
    return settings.use_cpu or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes", "on")


def _plan(settings: GenerateSettings) -> _Plan:
    from simpo.model import load_tokenizer

    tokenizer = load_tokenizer(
        settings.model_name_or_path,
        revision=settings.model_revision,
        trust_remote_code=settings.trust_remote_code,
    )
    config = _model_config(settings)
    context = settings.context_length or getattr(config.get_text_config(), "max_position_embeddings", None)
    prompts, repeated = read_prompts(settings)
    end = Renderer(tokenizer, settings.chat_template).prepare(prompts, context)
    stop_ids = _stop_ids(settings, config, tokenizer, end)
    assert settings.num_responses is not None
    size = max(1, settings.batch_size // settings.num_responses)
    # longest first: what does not fit into memory shows at once, and the remaining time is not underrated
    ordered = sorted((prompt for prompt in prompts if prompt.error is None), key=lambda p: (-len(p.ids), p.row))
    groups = [ordered[at : at + size] for at in range(0, len(ordered), size)]
    broken = [prompt for prompt in prompts if prompt.error is not None]
    return _Plan(prompts, repeated, stop_ids, context, ([broken] if broken else []) + groups)


def _model_config(settings: GenerateSettings) -> PretrainedConfig:
    from transformers import AutoConfig

    name = base_model(settings.model_name_or_path, settings.model_revision)
    try:
        return AutoConfig.from_pretrained(
            name, revision=settings.model_revision or "main", trust_remote_code=settings.trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"cannot load a model config from {name!r}: {reason}") from error


def base_model(name_or_path: str, revision: str | None) -> str:
    """The model itself, or the one that an adapter was trained on."""
    from transformers.utils.peft_utils import find_adapter_config_file

    try:
        found = find_adapter_config_file(name_or_path, revision=revision)
    except OSError:  # no such model; loading it says so
        return name_or_path
    if found is None:
        return name_or_path
    return str(json.loads(Path(found).read_text(encoding="utf-8"))["base_model_name_or_path"])


def _stop_ids(
    settings: GenerateSettings, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, end: int | None
) -> tuple[int, ...]:
    """Every token that ends a response: those of generation_config.json, the tokenizer's EOS, the template's end."""
    from transformers import GenerationConfig

    try:
        listed = GenerationConfig.from_pretrained(
            base_model(settings.model_name_or_path, settings.model_revision)
        ).eos_token_id
    except (OSError, ValueError):  # there is none
        listed = getattr(config, "eos_token_id", None)
    found = [*(listed if isinstance(listed, list) else [listed]), tokenizer.eos_token_id, end, *settings.stop_token_ids]
    return tuple(sorted({int(token) for token in found if token is not None}))


def _identity(settings: GenerateSettings, plan: _Plan) -> dict[str, Any]:
    """What the responses depend on; the rest (devices, batch size, patience) may change from one start to the next."""
    names = (
        "model_name_or_path", "model_revision", "dtype", "dataset_name", "dataset_config", "dataset_split",
        "prompt_column", "text_prompts", "seeds", "temperature", "top_p", "max_new_tokens", "engine", "server_api",
        "server_model",
    )  # fmt: skip
    digest = hashlib.blake2b(digest_size=12)
    for prompt in plan.prompts:
        digest.update(f"{prompt.key} {prompt.row} {prompt.ids}\n".encode())
    known = {name: getattr(settings, name) for name in names}
    return {**known, "stop_ids": list(plan.stop_ids), "context": plan.context, "prompts": digest.hexdigest()}


def _sample_groups(
    settings: GenerateSettings,
    plan: _Plan,
    groups: Sequence[Sequence[Prompt]],
    store: Store,
    engine: Engine | None,
    *,
    quiet: bool,
) -> None:
    prompts = [prompt for group in groups for prompt in group]
    done = sum(prompt.key in store.done for prompt in prompts)
    with tqdm(
        total=len(prompts),
        initial=done,
        unit="prompt",
        desc="Sampling",
        disable=quiet,
        file=sys.stderr,
        mininterval=1.0,
    ) as bar:
        for prompt in prompts:
            if prompt.error is not None and prompt.key not in store.done:
                store.append(prompt.key, {**prompt.record(), "responses": [], "error": prompt.error})
                bar.update()
        if all(prompt.key in store.done for prompt in prompts):
            return
        with ExitStack() as stack:
            if engine is None:
                engine = build_engine(settings)
                stack.callback(engine.close)
            for prompt, outcomes in _answers(settings, plan, groups, store.done, engine):
                if prompt.key not in store.done:
                    store.append(prompt.key, record_of(prompt, cast(Sequence[int], settings.seeds), outcomes))
                    bar.update()


def _answers(
    settings: GenerateSettings, plan: _Plan, groups: Sequence[Sequence[Prompt]], done: set[str], engine: Engine
) -> Iterator[tuple[Prompt, list[Sample | Failure]]]:
    """Each prompt with the outcomes of its seeds, as soon as all of them are there."""
    seeds = cast(Sequence[int], settings.seeds)
    asked: list[tuple[Prompt, int]] = []
    found: dict[str, dict[int, Sample | Failure]] = {}

    def requests() -> Iterator[Request]:
        for group in groups:
            left = [prompt for prompt in group if prompt.error is None and prompt.key not in done]
            # an engine that computes requests together is given the same ones together again
            whole = [prompt for prompt in group if prompt.error is None] if left and engine.batch_size else left
            for prompt in whole:
                for place, seed in enumerate(seeds):
                    asked.append((prompt, place))
                    yield _request(settings, plan, prompt, seed)

    for number, outcome in engine.generate(requests()):
        prompt, place = asked[number]
        mine = found.setdefault(prompt.key, {})
        mine[place] = outcome
        if len(mine) == len(seeds):
            yield prompt, [mine[at] for at in range(len(seeds))]
            del found[prompt.key]


def _request(settings: GenerateSettings, plan: _Plan, prompt: Prompt, seed: int) -> Request:
    room = settings.max_new_tokens if plan.context is None else plan.context - len(prompt.ids)
    return Request(
        prompt.ids,
        max_new_tokens=min(settings.max_new_tokens, room),
        temperature=settings.temperature,
        top_p=settings.top_p,
        seed=seed,
        stop_ids=plan.stop_ids,
        text=prompt.text,
        messages=None if isinstance(prompt.content, str) else prompt.content,
        template_arguments=prompt.arguments,
    )


def record_of(prompt: Prompt, seeds: Sequence[int], outcomes: Sequence[Sample | Failure]) -> dict[str, Any]:
    """What is kept of a prompt: its responses in the order of the seeds, and what went wrong with the others."""
    responses = [
        {"text": found.text, "finish_reason": found.finish_reason, "tokens": found.tokens, "seed": seed}
        for seed, found in zip(seeds, outcomes, strict=True)
        if isinstance(found, Sample)
    ]
    failed = [f"seed {seed}: {found.error}" for seed, found in zip(seeds, outcomes, strict=True)
              if isinstance(found, Failure)]  # fmt: skip
    return {**prompt.record(), "responses": responses, "error": "; ".join(failed) or None}


def build_engine(settings: GenerateSettings) -> Engine:
    """The engine that the settings name.

    Raises:
        ConfigError: the environment variable of the key is not set.
        EngineError: vLLM is not installed, or cannot load the model.
        ModelError: the model cannot be loaded.
    """
    name = settings.model_name_or_path
    loading: dict[str, Any] = {
        "dtype": settings.dtype,
        "revision": settings.model_revision,
        "trust_remote_code": settings.trust_remote_code,
    }
    if settings.engine == "transformers":
        from simpo.engines.transformers_engine import load_transformers_engine

        assert settings.num_responses is not None
        size = max(1, settings.batch_size // settings.num_responses) * settings.num_responses
        return load_transformers_engine(name, batch_size=size, device="cpu" if _on_cpu(settings) else None, **loading)
    if settings.engine == "vllm":
        from simpo.engines.vllm_engine import VllmEngine

        return VllmEngine(
            name,
            tensor_parallel_size=settings.tensor_parallel_size,
            gpu_memory_utilization=settings.gpu_memory_utilization,
            max_model_len=settings.context_length,
            **loading,
        )
    from simpo.engines.server_engine import ServerEngine, ServerOptions

    key = None
    if settings.api_key_env is not None:
        key = os.environ.get(settings.api_key_env)
        if not key:
            raise ConfigError(f"api_key_env: the environment variable {settings.api_key_env} is not set")
    return ServerEngine(
        ServerOptions(
            urls=cast(list[str], settings.server_urls),
            model=settings.server_model or name,
            api=settings.server_api,
            max_in_flight=settings.max_in_flight,
            timeout=settings.server_timeout,
            retries=settings.server_retries,
            patience=settings.server_patience,
            api_key=key,
            extra=settings.server_extra,
        )
    )


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
