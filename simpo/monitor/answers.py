"""Greedy answers of the policy in the middle of its training: how they end, whether they repeat themselves.

Shape letters: R prompts, T tokens of the longest prompt and its answer, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any, cast

import torch
from accelerate.utils import DistributedType
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from simpo.monitor import signals
from simpo.monitor.probe import Sample
from simpo.repetition import repeated_share

if TYPE_CHECKING:
    from simpo.trainer import PreferenceTrainer


@dataclass(frozen=True)
class Answer:
    """One answer, with the fields of a line of `generations.jsonl`.

    Args:
        prompt, response: texts; the response without special tokens.
        tokens: generated, the end included.
        stopped: the model ended it.
        repeated: `simpo.repetition.repeated_share`.
        entropy: of the model's whole distribution, mean over the generated tokens, in nats.
    """

    prompt: str
    response: str
    tokens: int
    stopped: bool
    repeated: float
    entropy: float


def why_no_answers(trainer: PreferenceTrainer) -> str | None:
    """Why this run cannot answer prompts while it trains; None where it can."""
    if trainer.accelerator.distributed_type == DistributedType.FSDP:
        return "under FSDP every token would gather all weights anew"
    if trainer.args.torch_compile:
        return "compiled layers would be compiled again for every length"
    return None


def end_ids(trainer: PreferenceTrainer) -> tuple[int, ...]:
    """Tokens that end a response: the model's, and the tokenizer's EOS."""
    model = _language_model(trainer)
    listed = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    several = listed if isinstance(listed, list | tuple) else [listed]
    found = [*several, getattr(trainer.processing_class, "eos_token_id", None)]
    return tuple(sorted({int(token) for token in found if token is not None}))


def choose_prompts(sample: Sample, count: int, longest: float) -> list[list[int]]:
    """Different prompts, spread evenly over a sample, of `longest` tokens at most. [R][P]"""
    different = list(dict.fromkeys(tuple(pair["prompt_ids"]) for pair in sample.pairs))
    short = [list(prompt) for prompt in different if len(prompt) <= longest]
    wanted = min(count, len(short))
    return [short[at * len(short) // wanted] for at in range(wanted)]


def prompt_room(trainer: PreferenceTrainer) -> float:
    """Tokens that a prompt may have, so that an answer fits behind it."""
    limit = getattr(_language_model(trainer).config.get_text_config(), "max_position_embeddings", None)
    return math.inf if limit is None else limit - trainer.args.monitor_max_new_tokens


def generate_answers(trainer: PreferenceTrainer, prompts: Sequence[list[int]], ends: Sequence[int]) -> list[Answer]:
    """The most likely answers; every process must call it with the same prompts. Leaves no trace in the run.

    The model's own settings of generation (a repetition penalty, say) are left out: they would hide what is looked for.
    Under ZeRO-3 transformers keeps the processes in step, each token gathering one layer at a time.
    """
    model = _language_model(trainer)
    tokenizer = cast(Any, trainer.processing_class)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (ends[0] if ends else 0)
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=trainer.args.monitor_max_new_tokens,
        eos_token_id=list(ends) or None,
        pad_token_id=pad,
        use_cache=True,
    )
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts], device=trainer.args.device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=ids.device)
    watch = _Entropies()
    training, own = model.training, model.generation_config
    model.eval()
    model.generation_config = settings  # generate() fills what is left open from the model's own
    try:
        with torch.no_grad(), trainer.compute_loss_context_manager():
            found = model.generate(
                input_ids=ids,
                attention_mask=mask,
                generation_config=settings,
                logits_processor=LogitsProcessorList([watch]),
            )
    finally:
        model.generation_config = own
        model.train(training)
    entropies = watch.by_row()
    return [
        _answer(tokenizer, prompt, row[width:], entropy, ends)
        for prompt, row, entropy in zip(prompts, found.tolist(), entropies, strict=True)
    ]


def answer_numbers(answers: Sequence[Answer]) -> dict[str, float]:
    """What is logged of answers: means over them."""
    if not answers:
        return {}
    return {
        signals.STOPPED: fmean(answer.stopped for answer in answers),
        signals.REPEATED: fmean(answer.repeated for answer in answers),
        signals.ENTROPY: fmean(answer.entropy for answer in answers),
    }


class _Entropies(LogitsProcessor):
    """Changes nothing, and keeps the entropy of each row's next token."""

    def __init__(self) -> None:
        self._steps: list[Tensor] = []  # [R] each

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]
        probabilities = scores.float().softmax(dim=-1)  # [R, V]
        self._steps.append(torch.special.entr(probabilities).sum(dim=-1))
        return scores

    def by_row(self) -> list[list[float]]:
        """[R][steps] nats."""
        return torch.stack(self._steps, dim=1).tolist()


def _answer(tokenizer: Any, prompt: list[int], row: list[int], entropies: list[float], ends: Sequence[int]) -> Answer:
    """What stands up to the first end; behind it the row is padded."""
    count = next((at + 1 for at, token in enumerate(row) if token in ends), len(row))
    ids = row[:count]
    return Answer(
        prompt=tokenizer.decode(prompt, skip_special_tokens=True),
        response=tokenizer.decode(ids, skip_special_tokens=True),
        tokens=count,
        stopped=ids[-1] in ends,
        repeated=repeated_share(ids),
        entropy=fmean(entropies[:count]),
    )


def _language_model(trainer: PreferenceTrainer) -> Any:
    """The model that generates: what an engine and an adapter stand around."""
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    return model.get_base_model() if hasattr(model, "peft_config") and hasattr(model, "get_base_model") else model
