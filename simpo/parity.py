"""Does a model's packed forward say what its own forward says? Asked once, before the first step."""

import random

import torch
from torch import Tensor, nn

from simpo.errors import ModelError
from simpo.packing import pack_pairs

MODEL_INPUTS = ("input_ids", "position_ids", "segments", "source_positions", "target_ids")

# Largest mean difference in nats per token: rounding explains no more. Bidirectional attention, a transform before the
# head or a mask of the model's own make differences of 0.1 to several nats.
EXACT_TOLERANCE = 1e-3
ROUNDED_TOLERANCE = 0.3


@torch.no_grad()
def check_parity(model: nn.Module, *, vocabulary: int, device: torch.device, exact: bool) -> None:
    """Compare the packed log-probs of one short random pair with the model's ordinary forward on two separate rows.

    Costs three forwards of about a dozen tokens. Every rank must call it, so that sharded models gather in step.

    Args:
        model: the policy as the engine wraps it.
        vocabulary: token ids are drawn below it.
        device: where the inputs go.
        exact: the model computes in float32.

    Raises:
        ModelError: the two disagree, so training would optimise something else than the model's likelihood.
    """
    rng = random.Random(0)
    lengths = {"prompt_ids": 6, "chosen_ids": 4, "rejected_ids": 3}
    pair = {key: [rng.randrange(vocabulary) for _ in range(length)] for key, length in lengths.items()}
    training = model.training
    model.eval()
    try:
        packed, separate = _packed(model, pair, device), _separate(model, pair, device)
    finally:
        model.train(training)
    difference = (packed - separate).abs().mean().item()
    tolerance = EXACT_TOLERANCE if exact else ROUNDED_TOLERANCE
    if not difference <= tolerance:  # also where it is NaN
        raise ModelError(
            f"the packed forward of this model differs from its ordinary forward by {difference:.3g} nats per token "
            f"(allowed: {tolerance:g}), so its attention or head does something that packs do not serve; training it "
            "would be wrong. Choose another model, such as one of the Llama, Mistral, Qwen, Gemma or Phi families"
        )


def _packed(model: nn.Module, pair: dict[str, list[int]], device: torch.device) -> Tensor:
    pack = pack_pairs([pair])
    inputs = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in pack.items()}
    return model(**{key: inputs[key] for key in MODEL_INPUTS}).float()


def _separate(model: nn.Module, pair: dict[str, list[int]], device: torch.device) -> Tensor:
    parts = []
    for key in ("chosen_ids", "rejected_ids"):
        ids = torch.tensor([pair["prompt_ids"] + pair[key]], device=device)
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        logps = logits[0, len(pair["prompt_ids"]) - 1 : -1].float().log_softmax(-1)
        parts.append(logps.gather(1, ids[0, len(pair["prompt_ids"]) :, None]).squeeze(1))
    return torch.cat(parts)
