"""Sampling in this process with a model of transformers, on any device.

Shapes: R rows (requests of a batch), U different prompts among them, T tokens of the longest prompt, V vocabulary.

A response depends on its prompt, its seed and its settings. Its random numbers are drawn on the CPU before the batch
runs, so neither the device nor the other rows move them. The logits of a row can differ between batches by rounding;
where the batch is the same one, so is the response to the last bit.
"""

from __future__ import annotations

import hashlib
import inspect
import itertools
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from simpo.engines.base import Failure, Request, Result, Sample
from simpo.errors import ModelError
from simpo.weights import check_weights, loading_hint

logger = logging.getLogger(__name__)

_COMPACT_BELOW = 0.75
"""Finished rows are taken out of the batch when fewer than this part of its rows go on: each time copies the cache."""

_NOT_FINITE = "the policy's logits are NaN or infinite; try another dtype (float16 overflows in some models)"


def load_transformers_engine(
    name_or_path: str,
    *,
    batch_size: int,
    device: str | torch.device | None = None,
    dtype: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> TransformersEngine:
    """Load a policy and its tokenizer for sampling.

    Args:
        name_or_path: hub name or directory, also of a PEFT adapter.
        batch_size: responses that are sampled together.
        device: where; None for this process's accelerator, or the CPU where there is none.
        dtype: `auto`, `bfloat16`, `float16`, `float32`; None: bfloat16, and float32 on a CPU.

    Raises:
        ModelError: it cannot be loaded.
    """
    device = own_device() if device is None else torch.device(device)
    wanted = dtype or ("float32" if device.type == "cpu" else "bfloat16")
    check_weights(name_or_path, revision)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name_or_path, revision=revision or "main", trust_remote_code=trust_remote_code
        )
        model = AutoModelForCausalLM.from_pretrained(
            name_or_path,
            dtype=wanted if wanted == "auto" else getattr(torch, wanted),
            revision=revision or "main",
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0] + loading_hint(name_or_path, error)
        raise ModelError(f"cannot load a model from {name_or_path!r}: {reason}") from error
    return TransformersEngine(cast(Any, model).to(device), tokenizer, batch_size=batch_size)


def own_device() -> torch.device:
    """The accelerator of this process, by LOCAL_RANK among those of the machine; the CPU where there is none."""
    found = torch.accelerator.current_accelerator(check_available=True)
    if found is None:
        return torch.device("cpu")
    return torch.device(found.type, int(os.environ.get("LOCAL_RANK", "0")) % torch.accelerator.device_count())


class TransformersEngine:
    """Samples with a model in this process.

    Args:
        model: a causal language model, on its device.
        tokenizer: decodes the responses.
        batch_size: responses that are sampled together; halved for a batch that does not fit into the device's memory.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, batch_size: int = 40) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.batch_size: int | None = batch_size
        # the head is wanted at a prompt's last token only; models without the argument compute it everywhere
        self._last_only = (
            {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
        )

    def __enter__(self) -> TransformersEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Nothing to let go of: the model belongs to the caller."""

    def generate(self, requests: Iterable[Request]) -> Iterator[Result]:
        """Sample in batches of `batch_size` consecutive requests; the results of a batch come when it is done."""
        start = 0
        assert self.batch_size is not None
        left = iter(requests)
        while batch := list(itertools.islice(left, self.batch_size)):
            for index, sample in enumerate(self._sample(batch), start=start):
                yield Result(index, sample)
            start += len(batch)

    def _sample(self, batch: Sequence[Request]) -> list[Sample | Failure]:
        try:
            return self._sample_together(batch)
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise ModelError(
                    f"one response to a prompt of {len(batch[0].prompt_ids)} tokens does not fit into the memory of "
                    f"{self.model.device}; lower max_new_tokens, or use an engine that shards the model"
                ) from None
        # outside the except block: its traceback keeps the tensors of the batch alive
        torch.cuda.empty_cache()
        half = len(batch) // 2
        logger.warning("%d responses at once do not fit into memory; trying %d (see batch_size)", len(batch), half)
        return self._sample(batch[:half]) + self._sample(batch[half:])

    @torch.inference_mode()
    def _sample_together(self, batch: Sequence[Request]) -> list[Sample | Failure]:
        rows = _Rows(batch, self.model.device)
        logits, mask, cache = self._read_prompts(batch)
        alive = torch.arange(len(batch), device=self.model.device)
        for step in range(max(request.max_new_tokens for request in batch)):
            tokens = rows.take(alive, logits, step)
            going = rows.going(alive, step)
            count = int(going.sum())  # the one wait for the device in a step
            if not count:
                break
            if count < _COMPACT_BELOW * len(going):
                kept = going.nonzero()[:, 0]
                alive, tokens, mask = alive[kept], tokens[kept], mask[kept]
                cache.batch_select_indices(kept)
            positions = mask.sum(dim=1, keepdim=True)
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            logits = self.model(
                input_ids=tokens[:, None],
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            ).logits[:, -1]
        broken = rows.broken.tolist()
        return [
            Failure(_NOT_FINITE) if broken[row] else self._finish(request, *rows.of(row))
            for row, request in enumerate(batch)
        ]

    def _read_prompts(self, batch: Sequence[Request]) -> tuple[Tensor, Tensor, DynamicCache]:
        """Logits behind each prompt [R, V], mask [R, T] and cache. A prompt that several rows share is read once."""
        prompts = list(dict.fromkeys(tuple(request.prompt_ids) for request in batch))
        width = max(map(len, prompts))
        # left of the prompts, so that all of them end where sampling begins; what stands there is never looked at
        ids = torch.tensor([(prompt[0],) * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        ids, mask = ids.to(self.model.device), mask.to(self.model.device)
        # without the config, sliding layers keep all keys: rows of other lengths do not share one window
        cache = DynamicCache()
        logits = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(dim=1) - 1).clamp_min(0),
            past_key_values=cache,
            use_cache=True,
            **self._last_only,
        ).logits[:, -1]
        number = {prompt: at for at, prompt in enumerate(prompts)}
        which = torch.tensor([number[tuple(request.prompt_ids)] for request in batch], device=self.model.device)
        cache.batch_select_indices(which)
        return logits[which], mask[which], cache

    def _finish(self, request: Request, ids: list[int], logprobs: list[float]) -> Sample:
        ended = bool(ids) and ids[-1] in request.stop_ids
        text = self.tokenizer.decode(
            ids[:-1] if ended else ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return Sample(cast(str, text), "stop" if ended else "length", len(ids), ids, logprobs)


class _Rows:
    """Settings, random numbers and tokens of a batch's rows, on the device."""

    def __init__(self, batch: Sequence[Request], device: torch.device) -> None:
        steps = max(request.max_new_tokens for request in batch)
        # double precision: with float32 the cumulated probabilities of a large vocabulary would miss rare tokens
        self.precision = torch.float32 if device.type == "mps" else torch.float64
        self.temperature = torch.tensor([request.temperature for request in batch], device=device)
        self.top_p = torch.tensor([request.top_p for request in batch], device=device, dtype=self.precision)
        self.greedy = self.temperature == 0
        self.limit = torch.tensor([request.max_new_tokens for request in batch], device=device)
        stops = max((len(request.stop_ids) for request in batch), default=0)
        self.stops = torch.tensor(
            [[*request.stop_ids, *[-1] * (stops - len(request.stop_ids))] for request in batch], device=device
        )
        draws = torch.stack([uniforms(request, steps) for request in batch])
        self.draws = draws.to(device=device, dtype=self.precision)
        self.ids = torch.full((len(batch), steps), -1, device=device)
        self.logprobs = torch.zeros(len(batch), steps, device=device)
        self.any_greedy = bool(self.greedy.any())
        self.any_top_p = bool((self.top_p < 1).any())
        self.ended = torch.zeros(len(batch), dtype=torch.bool, device=device)
        self.broken = self.ended.clone()

    def take(self, alive: Tensor, logits: Tensor, step: int) -> Tensor:
        """The next token of each row that is in the batch, written down unless the row has ended. [A]"""
        logits = logits.float()
        temperature = self.temperature[alive, None].where(~self.greedy[alive, None], torch.ones_like(logits[:, :1]))
        tokens = sample_tokens(
            (logits / temperature).softmax(dim=-1),
            self.draws[alive, step],
            self.top_p[alive] if self.any_top_p else None,
        )
        if self.any_greedy:
            tokens = logits.argmax(dim=-1).where(self.greedy[alive], tokens)
        mass = logits.logsumexp(dim=-1)
        logprobs = logits.gather(1, tokens[:, None])[:, 0] - mass
        self.broken[alive] |= ~(mass.isfinite() | self.ended[alive])  # -inf rules a token out; NaN and inf are faults
        fresh = ~self.ended[alive]
        self.ids[alive, step] = tokens.where(fresh, torch.full_like(tokens, -1))
        self.logprobs[alive, step] = logprobs
        return tokens

    def going(self, alive: Tensor, step: int) -> Tensor:
        """Which of these rows go on behind this step. [A]"""
        tokens = self.ids[alive, step, None]
        stopped = ((tokens == self.stops[alive]) & (tokens >= 0)).any(dim=1)
        self.ended[alive] |= stopped | self.broken[alive] | (self.limit[alive] <= step + 1)
        return ~self.ended[alive]

    def of(self, row: int) -> tuple[list[int], list[float]]:
        """Tokens of a row, and their log-probs in nats."""
        ids = [token for token in self.ids[row].tolist() if token >= 0]
        return ids, self.logprobs[row, : len(ids)].tolist()


def uniforms(request: Request, steps: int) -> Tensor:
    """Numbers in [0, 1) for the steps of a response, from its prompt and seed alone. float64 [steps]

    The prompt goes in so that the same seed does not move the responses to all prompts alike.
    """
    text = ",".join(map(str, [request.seed, *request.prompt_ids]))
    seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1
    return torch.rand(steps, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def sample_tokens(probabilities: Tensor, draws: Tensor, top_p: Tensor | None = None) -> Tensor:
    """One token a row by inverting the cumulated probabilities.

    Args:
        probabilities: [R, V], each row adds up to 1.
        draws: numbers in [0, 1). [R]
        top_p: keep the smallest set of most likely tokens with so much probability together; None keeps all. [R]

    Returns:
        Token ids. [R]
    """
    if top_p is not None:
        probabilities = probabilities.where(nucleus(probabilities, top_p), torch.zeros_like(probabilities[:, :1]))
    # in the order of the vocabulary: what a draw means must not depend on whether other rows have a top_p
    total = probabilities.to(draws.dtype).cumsum(dim=-1)
    # right=True: a draw on a token's upper edge belongs to the next one, so tokens of probability 0 are never drawn
    at = torch.searchsorted(total, (draws * total[:, -1])[:, None], right=True)
    last = probabilities.size(-1) - 1 - (probabilities.flip(-1) > 0).int().argmax(dim=-1, keepdim=True)
    return at.minimum(last)[:, 0]


def nucleus(probabilities: Tensor, top_p: Tensor, candidates: int = 1024) -> Tensor:
    """The smallest set of most likely tokens with a probability of `top_p` together; of equal ones, lower ids first.

    Sorting a whole vocabulary takes longer than the model on a CPU, so the most likely `candidates` are looked at
    first; all tokens are sorted only where these do not hold the set of every row.

    Args:
        probabilities: [R, V].
        top_p: at least one token is kept; 1 keeps all. [R]

    Returns:
        Which tokens are kept. [R, V] bool
    """
    size = probabilities.size(-1)
    if candidates < size:
        order = probabilities.topk(candidates, dim=-1).indices.sort(dim=-1).values
        values = probabilities.gather(1, order)
    else:
        order, values = None, probabilities
    values, sorting = values.sort(dim=-1, descending=True, stable=True)
    order = sorting if order is None else order.gather(1, sorting)
    cumulated = values.to(top_p.dtype).cumsum(dim=-1)
    inside = cumulated - values < top_p[:, None]
    inside[:, 0] = True
    if candidates < size:
        # the last candidate may have equals that are none: the set must end above it
        smallest = values.masked_fill(~inside, float("inf")).amin(dim=-1)
        if not bool(((smallest > values[:, -1]) | (top_p >= 1)).all()):
            return nucleus(probabilities, top_p, size)
    kept = torch.zeros_like(probabilities, dtype=torch.bool).scatter_(1, order, inside)
    return kept | (top_p[:, None] >= 1)
