"""Does a model's packed forward say what its own forward says? Asked once, before the first step."""

import random

import torch
from torch import Tensor, nn

from simpo.errors import ModelError
from simpo.packing import pack_pairs

MODEL_INPUTS = ("input_ids", "position_ids", "layout", "source_positions", "target_ids")

# Largest mean difference in nats per token: rounding explains no more. Bidirectional attention, a transform before the
# head or a mask of the model's own make differences of 0.1 to several nats.
EXACT_TOLERANCE = 1e-3
ROUNDED_TOLERANCE = 0.3
_LONGEST_WINDOW, _SHORT_WINDOW = 4096, 64  # that the pair is made to exceed, on a GPU and elsewhere


@torch.no_grad()
def check_parity(
    model: nn.Module, *, vocabulary: int, device: torch.device, exact: bool, window: int | None = None
) -> None:
    """Compare the packed log-probs of one short random pair with the model's ordinary forward on two separate rows.

    Costs three forwards of about a dozen tokens, or of a sliding window's length where that is cheap. Every rank must
    call it, so that sharded models gather in step.

    Args:
        model: the policy as the engine wraps it.
        vocabulary: token ids are drawn below it.
        window: the model's sliding window; on a GPU, and where it is short, the pair is made longer than it.
        device: where the inputs go.
        exact: the model computes in float32.

    Raises:
        ModelError: the two disagree, so training would optimise something else than the model's likelihood.
    """
    rng = random.Random(0)
    affordable = _LONGEST_WINDOW if device.type == "cuda" else _SHORT_WINDOW
    prompt = window if window is not None and window <= affordable else 6
    lengths = {"prompt_ids": prompt, "chosen_ids": 4, "rejected_ids": 3}
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
    return model(**{key: pack[key].to(device) for key in MODEL_INPUTS}).float()  # type: ignore[literal-required]


def _separate(model: nn.Module, pair: dict[str, list[int]], device: torch.device) -> Tensor:
    parts = []
    for key in ("chosen_ids", "rejected_ids"):
        ids = torch.tensor([pair["prompt_ids"] + pair[key]], device=device)
        kept = len(pair[key]) + 1
        # a long prompt's logits would be gigabytes; code that comes with a model may not know the argument
        fewer = {"logits_to_keep": kept} if len(pair["prompt_ids"]) > _SHORT_WINDOW else {}
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **fewer).logits
        logps = logits[0, -kept:-1].float().log_softmax(-1)
        parts.append(logps.gather(1, ids[0, len(pair["prompt_ids"]) :, None]).squeeze(1))
    return torch.cat(parts)
