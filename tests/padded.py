"""The plain twin of a pack: two padded rows a pair, full logits."""

from typing import Any

import torch

from simpo.logps import response_logps
from simpo.packing import pack_pairs
from simpo.parity import MODEL_INPUTS


def packed_sums(model: Any, pairs: list[dict], shared: bool) -> torch.Tensor:
    """[2 B] log-probs of chosen and rejected in turn, by one pack."""
    pack = pack_pairs(pairs, prefix_sharing=shared)
    lengths = torch.stack((pack["chosen_lengths"], pack["rejected_lengths"]), dim=1).flatten()
    return response_logps(model(**{key: pack[key] for key in MODEL_INPUTS}), lengths)


def padded_sums(model: Any, pairs: list[dict]) -> torch.Tensor:
    """[2 B] the same by two padded rows for each pair, full logits, shifted by one."""
    rows = [(pair["prompt_ids"], pair[key]) for pair in pairs for key in ("chosen_ids", "rejected_ids")]
    width = max(len(p) + len(r) for p, r in rows)
    ids = torch.tensor([p + r + [0] * (width - len(p) - len(r)) for p, r in rows])
    mask = torch.tensor([[1] * len(p + r) + [0] * (width - len(p + r)) for p, r in rows])
    logps = model(input_ids=ids, attention_mask=mask).logits.float().log_softmax(-1)[:, :-1]
    logps = logps.gather(2, ids[:, 1:, None]).squeeze(2)
    return torch.stack([logps[i, len(p) - 1 : len(p) + len(r) - 1].sum() for i, (p, r) in enumerate(rows)])
