"""Hidden states at chosen positions x LM head -> log-probs of given tokens, without a logits tensor.

Shape letters: S scored tokens, D hidden size, V vocabulary.
"""

import torch
from torch import Tensor

# Elements of one [rows, vocabulary chunk] tile: a few such tiles in float32 are all that the head holds at a time.
_TILE_ELEMENTS = {"cpu": 2**20, "cuda": 2**27}
_MAX_TILE_ROWS = 4096  # trl.kernels cuts the rows itself


def vocabulary_chunk(rows: int, vocabulary: int, device_type: str) -> int:
    """Width of a vocabulary chunk such that a tile of `rows` stays within the device's tile budget.

    >>> vocabulary_chunk(4096, 128256, "cuda")
    32768
    """
    budget = _TILE_ELEMENTS.get(device_type, _TILE_ELEMENTS["cuda"])
    chunk = max(1024, budget // max(1, min(rows, _MAX_TILE_ROWS)) // 1024 * 1024)
    return min(chunk, vocabulary)


def token_logps(
    hidden: Tensor,
    weight: Tensor,
    target_ids: Tensor,
    bias: Tensor | None = None,
    *,
    softcap: float | None = None,
    logit_scale: float = 1.0,
) -> Tensor:
    """Log-probs of `target_ids` under softmax(f(hidden @ weight.T + bias)), chunk by chunk, in float32.

        f(z) = softcap * tanh(logit_scale * z / softcap), or logit_scale * z where softcap is None

    Backward recomputes each chunk; a frozen `weight` costs no weight gradient, and without gradients nothing is kept.

    Args:
        hidden: [S, D] last hidden states at the positions that predict the targets.
        weight: [V, D] LM head (or tied embedding).
        target_ids: [S] token predicted at each row.
        bias: [V] or None.
        softcap: final logit soft cap (Gemma-2), > 0.
        logit_scale: factor on the logits (Cohere, Granite).

    Returns:
        [S] natural log-probs, float32.
    """
    from trl.kernels import ChunkedLogProbFunction

    chunk = vocabulary_chunk(hidden.shape[0], weight.shape[0], hidden.device.type)
    logps, *_ = ChunkedLogProbFunction.apply(hidden, weight, bias, target_ids, 1.0, chunk, softcap, logit_scale, ())
    return logps


def response_logps(logps: Tensor, response_lengths: Tensor) -> Tensor:
    """Sum token log-probs over consecutive responses.

    Args:
        logps: [S] token log-probs (nats), responses back to back.
        response_lengths: [R] tokens of each response, summing to S.

    Returns:
        [R] summed log-probs (nats), float32; the order of summation is fixed, so results repeat bit for bit.
    """
    # unsafe: the lengths are counted from the tokens; checking them would synchronise the device twice
    return torch.segment_reduce(logps.float(), "sum", lengths=response_lengths, unsafe=True)
