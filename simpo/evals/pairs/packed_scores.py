"""Log-probs of responses under a model that is not trained: packs of a token budget, longest pairs together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from simpo.batching import Budget, MicroBatch, StepSampler
from simpo.errors import ModelError
from simpo.metrics import PairResults
from simpo.model import load_policy
from simpo.packing import PackedBatch, PackedDataset, packed_tokens
from simpo.sampling.policy import base_model
from simpo.scoring import check_policy, pack_logps
from simpo.weights import check_weights

if TYPE_CHECKING:
    from accelerate import Accelerator

_PLANNED = 4096  # pairs of each process that are sorted and cut together


def load_scored_model(
    name_or_path: str,
    *,
    dtype: torch.dtype | str,
    device: torch.device,
    attn_backend: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> nn.Module:
    """A model with the packed forward, in evaluation mode on its device; an adapter lies around its base.

    Raises:
        ModelError: it cannot be loaded or cannot serve packs.
    """
    base = base_model(name_or_path, revision)
    adapter = base != name_or_path
    model: nn.Module = load_policy(
        base,
        dtype=dtype,
        revision=None if adapter else revision,
        trust_remote_code=trust_remote_code,
        attn_backend=attn_backend,
    )
    if adapter:
        from peft import PeftModel

        check_weights(name_or_path, revision)
        try:
            model = PeftModel.from_pretrained(model, name_or_path, revision=revision or "main")
        except (OSError, ValueError, RuntimeError) as error:
            raise ModelError(f"cannot load the adapter {name_or_path!r} on {base!r}: {error}") from error
    return model.to(device).eval().requires_grad_(False)


@torch.no_grad()
def score_pairs(
    model: nn.Module,
    pairs: Any,
    accelerator: Accelerator,
    *,
    max_tokens: int,
    max_length: int,
    prefix_sharing: bool = True,
) -> dict[str, np.ndarray]:
    """Log-probs of both responses of every pair; every process must call it, and each takes its part.

    Args:
        model: from `load_scored_model`.
        pairs: tokenised rows.
        accelerator: of this process.
        max_tokens: bound of a pack; a longer pair is computed alone.
        max_length: tokens of the longest prompt with response.
        prefix_sharing: compute the prompt of a pair once.

    Returns:
        [N] float64 `chosen` and `rejected`, in nats, in the order of the rows.

    Raises:
        ModelError: packs do not serve this model, or log-probs are not finite.
    """
    exact = next(model.parameters()).dtype == torch.float32
    check_policy(model, model, device=accelerator.device, max_length=max_length, exact=exact)
    packed = PackedDataset(pairs, prefix_sharing=prefix_sharing)
    tokens = packed_tokens(pairs, prefix_sharing=prefix_sharing)
    plan = list(_plan(tokens, max_tokens, accelerator))
    results = PairResults()
    share = sum(int(tokens[list(part.pairs)].sum()) for part in plan)
    with tqdm(
        total=share, unit="token", unit_scale=True, desc="Scoring", disable=not accelerator.is_main_process
    ) as bar:
        for pack in _loader(packed, plan, accelerator.device):
            on_device: Any = {key: value.to(accelerator.device, non_blocking=True) for key, value in pack.items()}
            chosen, rejected = pack_logps(model, on_device)
            results.add({"chosen": chosen, "rejected": rejected}, on_device["pair_weights"], on_device["pair_index"])
            bar.update(pack["input_ids"].shape[1])
    found = results.gather(accelerator)
    broken = np.flatnonzero(~np.isfinite(found["chosen"] + found["rejected"]))
    if len(broken):
        raise ModelError(
            f"log-probs of pair {broken[0]} are not finite (so are those of {len(broken)} in all); "
            "try dtype: bfloat16 or float32 (float16 overflows in some models)"
        )
    return found


def _plan(tokens: np.ndarray, max_tokens: int, accelerator: Accelerator) -> Iterator[MicroBatch]:
    """The packs of this process: at least one, for gathering wants every process."""
    sampler = StepSampler(
        tokens,
        pairs_per_step=_PLANNED * accelerator.num_processes,
        budget=Budget(1, max_tokens),
        world_size=accelerator.num_processes,
        rank=accelerator.process_index,
    )
    for part in sampler:
        yield from part


def _loader(packed: PackedDataset, plan: list[MicroBatch], device: torch.device) -> DataLoader[PackedBatch]:
    # a worker packs while the device computes; on a CPU both want the same cores
    on_gpu = device.type == "cuda"
    return DataLoader(
        packed,
        sampler=plan,  # type: ignore[arg-type]
        batch_size=None,
        num_workers=1 if on_gpu and len(plan) > 8 else 0,
        pin_memory=on_gpu,
    )
