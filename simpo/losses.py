"""Every objective: pure functions of tensors and numbers.

Shape letters: B pairs. All log-probs are natural logs in float32.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LossType = Literal["sigmoid", "hinge"]


class PairLogps(NamedTuple):
    """What an objective sees of B pairs.

    Fields:
        chosen, rejected: [B] log-prob summed over the response, in nats.
        chosen_lengths, rejected_lengths: [B] scored tokens of each response, at least 1.
    """

    chosen: Tensor
    rejected: Tensor
    chosen_lengths: Tensor
    rejected_lengths: Tensor


class PairLosses(NamedTuple):
    """What an objective returns for B pairs.

    Fields:
        losses: [B] one loss a pair, with gradient.
        chosen_rewards, rejected_rewards: [B] scaled implicit rewards, detached.
    """

    losses: Tensor
    chosen_rewards: Tensor
    rejected_rewards: Tensor


Objective = Callable[[PairLogps], PairLosses]


def simpo_loss(
    logps: PairLogps,
    *,
    beta: float = 2.0,
    gamma_beta_ratio: float = 0.5,
    loss_type: LossType = "sigmoid",
    label_smoothing: float = 0.0,
) -> PairLosses:
    """SimPO: Bradley-Terry on length-normalised rewards with a target margin.

        reward(y) = beta / |y| * log pi(y | x)
        sigmoid: -(1 - eps) log sigmoid(m) - eps log sigmoid(-m),  m = reward(w) - reward(l) - gamma
        hinge:   max(0, 1 - m)
        gamma = beta * gamma_beta_ratio,  eps = label_smoothing

    Source: SimPO (arXiv 2405.14734), equations 4 to 6; label smoothing as in conservative DPO (arXiv 2305.18290,
    appendix), the hinge as in SLiC-HF (arXiv 2305.10425).

    Args:
        logps: sums and lengths of B pairs.
        beta: reward scale, > 0.
        gamma_beta_ratio: target margin divided by beta, >= 0.
        loss_type: "sigmoid" or "hinge".
        label_smoothing: probability that a label is flipped, in [0, 0.5); sigmoid only.

    Raises:
        ValueError: for an unknown `loss_type`, or label smoothing with the hinge.

    Example:
        >>> import torch
        >>> pair = PairLogps(*(torch.tensor([v]) for v in (-10.0, -24.0, 10, 12)))
        >>> simpo_loss(pair, beta=2.0, gamma_beta_ratio=0.5).losses
        tensor([0.3133])
    """
    chosen_mean = logps.chosen / logps.chosen_lengths  # eq. 3
    rejected_mean = logps.rejected / logps.rejected_lengths
    logits = beta * (chosen_mean - rejected_mean - gamma_beta_ratio)  # eq. 5, inside the sigmoid
    if loss_type == "sigmoid":
        losses = -F.logsigmoid(logits) * (1 - label_smoothing) - F.logsigmoid(-logits) * label_smoothing  # eq. 6
    elif loss_type == "hinge":
        if label_smoothing:
            raise ValueError("label_smoothing belongs to loss_type='sigmoid'; set it to 0 for the hinge")
        losses = torch.relu(1 - logits)
    else:
        raise ValueError(f"loss_type is {loss_type!r}; write 'sigmoid' or 'hinge'")
    return PairLosses(losses, beta * chosen_mean.detach(), beta * rejected_mean.detach())  # eq. 4


def step_loss(
    losses: Tensor,
    chosen: Tensor,
    pair_weights: Tensor,
    *,
    pairs_in_step: Tensor | int,
    chosen_tokens_in_step: Tensor | int,
    sft_weight: float = 0.0,
) -> Tensor:
    """One micro-batch's share of the loss of a whole optimizer step; the shares of all micro-batches add up.

        sum_i w_i losses_i / pairs  -  sft_weight * sum_i w_i chosen_i / chosen tokens

    The second term is the mean negative log-likelihood of the chosen tokens (SimPO + SFT, arXiv 2405.14734 appendix).
    Dividing by counts of the whole step, never of a micro-batch, keeps all pairs' weights equal however it is cut.

    Args:
        losses: [B] loss of each pair.
        chosen: [B] log-prob of the chosen response, summed over its tokens (nats).
        pair_weights: [B] 1 for a pair, 0 for a filler that only keeps ranks in step.
        pairs_in_step: pairs in the optimizer step over all ranks, >= 1.
        chosen_tokens_in_step: scored tokens of their chosen responses, >= 1.
        sft_weight: >= 0.
    """
    loss = (losses * pair_weights).sum() / pairs_in_step
    if sft_weight:
        loss = loss - sft_weight * (chosen * pair_weights).sum() / chosen_tokens_in_step
    return loss
