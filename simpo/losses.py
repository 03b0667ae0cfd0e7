"""Every objective: pure functions of tensors and numbers.

Shape letters: B pairs. All log-probs are natural logs in float32. w is the chosen response, l the rejected one, |y| the
number of scored tokens, log pi(y) the log-prob of a response given its prompt, summed over its tokens, ref the frozen
initial policy. `rewards` are what each method compares by; they are detached, and their scale differs between methods.
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
        chosen_lengths, rejected_lengths: [B] scored tokens of each response; 0 where an unpaired row has none.
        ref_chosen, ref_rejected: [B] the same sums under the frozen initial policy; None where the run has none.
        kl: scalar, estimate of KL(pi || ref) in nats, at least 0 and detached; for KTO only.
    """

    chosen: Tensor
    rejected: Tensor
    chosen_lengths: Tensor
    rejected_lengths: Tensor
    ref_chosen: Tensor | None = None
    ref_rejected: Tensor | None = None
    kl: Tensor | None = None


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


def log_ratios(logps: PairLogps) -> tuple[Tensor, Tensor]:
    """[B], [B] log pi(y) / ref(y) of both responses, in nats.

    Raises:
        ValueError: the log-probs of the initial policy are missing.
    """
    if logps.ref_chosen is None or logps.ref_rejected is None:
        raise ValueError(
            "this objective needs ref_chosen and ref_rejected, the log-probs of the initial policy; register it with "
            "reference=True, or write log_kl: true"
        )
    return logps.chosen - logps.ref_chosen, logps.rejected - logps.ref_rejected


def _per_token(sums: tuple[Tensor, Tensor], logps: PairLogps) -> tuple[Tensor, Tensor]:
    """[B], [B] sums over chosen and rejected responses divided by their lengths."""
    return sums[0] / logps.chosen_lengths, sums[1] / logps.rejected_lengths


def _means(logps: PairLogps) -> tuple[Tensor, Tensor]:
    """[B], [B] log-probs per token, in nats."""
    return _per_token((logps.chosen, logps.rejected), logps)


def _preference_nll(logits: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Negative log-likelihood of a preference under Bradley-Terry, whose label is wrong with a given probability."""
    return -F.logsigmoid(logits) * (1 - label_smoothing) - F.logsigmoid(-logits) * label_smoothing


def simpo_loss(
    logps: PairLogps,
    *,
    beta: float = 2.0,
    gamma_beta_ratio: float = 0.5,
    loss_type: LossType = "sigmoid",
    label_smoothing: float = 0.0,
    length_normalization: bool = True,
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
        length_normalization: divide by |y|; False is the paper's ablation (table 5), with sums in place of means.

    Raises:
        ValueError: for an unknown `loss_type`, or label smoothing with the hinge.

    Example:
        >>> import torch
        >>> pair = PairLogps(*(torch.tensor([v]) for v in (-10.0, -24.0, 10, 12)))
        >>> simpo_loss(pair, beta=2.0, gamma_beta_ratio=0.5).losses
        tensor([0.3133])
    """
    chosen, rejected = _means(logps) if length_normalization else (logps.chosen, logps.rejected)  # eq. 3
    logits = beta * (chosen - rejected - gamma_beta_ratio)  # eq. 5, inside the sigmoid
    if loss_type == "sigmoid":
        losses = _preference_nll(logits, label_smoothing)  # eq. 6
    elif loss_type == "hinge":
        if label_smoothing:
            raise ValueError("label_smoothing belongs to loss_type='sigmoid'; set it to 0 for the hinge")
        losses = torch.relu(1 - logits)
    else:
        raise ValueError(f"loss_type is {loss_type!r}; write 'sigmoid' or 'hinge'")
    return PairLosses(losses, beta * chosen.detach(), beta * rejected.detach())  # eq. 4


# Exponents beyond this make gradients whose norm float32 cannot hold; the gradient vanishes there.
_LARGEST_EXPONENT = 30.0


def alphapo_loss(
    logps: PairLogps, *, beta: float = 2.5, gamma_beta_ratio: float = 0.1, alpha: float = 0.25
) -> PairLosses:
    """AlphaPO: SimPO with a reward whose shape alpha bends.

        p = exp(log pi(y) / |y|),  reward(y) = beta (1 - p^-alpha) / alpha
        loss = -log sigmoid(reward(w) - reward(l) - gamma),  gamma = beta * gamma_beta_ratio

    Source: AlphaPO (arXiv 2501.03884); alpha -> 0 gives SimPO.

    Args:
        logps: sums and lengths of B pairs.
        beta: reward scale, > 0.
        gamma_beta_ratio: target margin divided by beta, >= 0.
        alpha: shape of the reward; above 0 it punishes improbable responses more, below 0 less; 0 is SimPO.
    """

    def reward(mean: Tensor) -> Tensor:
        if alpha == 0:
            return mean
        return -torch.expm1((-alpha * mean).clamp(max=_LARGEST_EXPONENT)) / alpha

    chosen, rejected = (reward(mean) for mean in _means(logps))
    losses = _preference_nll(beta * (chosen - rejected - gamma_beta_ratio))
    return PairLosses(losses, beta * chosen.detach(), beta * rejected.detach())


def dpo_loss(
    logps: PairLogps,
    *,
    beta: float = 0.1,
    gamma_beta_ratio: float = 0.0,
    label_smoothing: float = 0.0,
    length_normalization: bool = False,
) -> PairLosses:
    """DPO: Bradley-Terry on log-ratios to the initial policy.

        reward(y) = beta log pi(y) / ref(y)
        loss = -(1 - eps) log sigmoid(m) - eps log sigmoid(-m),  m = reward(w) - reward(l) - gamma

    Source: DPO (arXiv 2305.18290), equation 7; label smoothing from its appendix. Length normalisation (each log-ratio
    divided by |y|) and the margin gamma = beta * gamma_beta_ratio are variants that SimPO's authors compare with
    (arXiv 2405.14734, appendix); both are off in DPO itself.

    Args:
        logps: sums of B pairs, also under the initial policy.
        beta: strength of the KL constraint, > 0.
        gamma_beta_ratio: target margin divided by beta, >= 0.
        label_smoothing: probability that a label is flipped, in [0, 0.5).
        length_normalization: divide each log-ratio by |y|.

    Raises:
        ValueError: the log-probs of the initial policy are missing.
    """
    chosen, rejected = log_ratios(logps)
    if length_normalization:
        chosen, rejected = _per_token((chosen, rejected), logps)
    losses = _preference_nll(beta * (chosen - rejected - gamma_beta_ratio), label_smoothing)
    return PairLosses(losses, beta * chosen.detach(), beta * rejected.detach())


def ipo_loss(logps: PairLogps, *, tau: float = 0.1, length_normalization: bool = False) -> PairLosses:
    """IPO: a squared distance between the difference of log-ratios and a fixed margin.

        loss = (log pi(w) / ref(w) - log pi(l) / ref(l) - 1 / (2 tau))^2

    Source: IPO (arXiv 2310.12036), equation 17, with log-probs of whole responses as there and in SimPO's table 3.
    TRL divides each log-ratio by |y|, which its documentation reports as the authors' own practice.

    Args:
        logps: sums of B pairs, also under the initial policy.
        tau: strength of the regularisation, > 0.
        length_normalization: divide each log-ratio by |y|, as TRL does.

    Raises:
        ValueError: the log-probs of the initial policy are missing.
    """
    chosen, rejected = log_ratios(logps)
    if length_normalization:
        chosen, rejected = _per_token((chosen, rejected), logps)
    losses = (chosen - rejected - 1 / (2 * tau)) ** 2
    return PairLosses(losses, tau * chosen.detach(), tau * rejected.detach())


def rdpo_loss(logps: PairLogps, *, beta: float = 0.1, length_penalty: float = 0.05) -> PairLosses:
    """R-DPO: DPO whose reward charges for each token, so that a preference for the longer response teaches less.

        loss = -log sigmoid(beta log pi(w) / ref(w) - beta log pi(l) / ref(l) + alpha (|w| - |l|))

    Source: R-DPO (arXiv 2403.19159); alpha is `length_penalty`. The rewards reported are DPO's.

    Args:
        logps: sums and lengths of B pairs, also under the initial policy.
        beta: strength of the KL constraint, > 0.
        length_penalty: what a token costs, >= 0.

    Raises:
        ValueError: the log-probs of the initial policy are missing.
    """
    chosen, rejected = log_ratios(logps)
    longer = logps.chosen_lengths - logps.rejected_lengths
    losses = _preference_nll(beta * (chosen - rejected) + length_penalty * longer)
    return PairLosses(losses, beta * chosen.detach(), beta * rejected.detach())


def cpo_loss(logps: PairLogps, *, beta: float = 0.1, nll_weight: float = 1.0) -> PairLosses:
    """CPO: DPO with a uniform reference, and the likelihood of the chosen response.

        loss = -log sigmoid(beta log pi(w) - beta log pi(l)) - lambda log pi(w)

    Source: CPO (arXiv 2401.08417), where the second term is the log-prob of the whole response; TRL
    takes its mean over tokens (as `sft_weight` does). lambda is `nll_weight`.

    Args:
        logps: sums of B pairs.
        beta: reward scale, > 0.
        nll_weight: weight of the chosen response's negative log-likelihood, >= 0.
    """
    losses = _preference_nll(beta * (logps.chosen - logps.rejected)) - nll_weight * logps.chosen
    return PairLosses(losses, beta * logps.chosen.detach(), beta * logps.rejected.detach())


def rrhf_loss(logps: PairLogps, *, nll_weight: float = 1.0) -> PairLosses:
    """RRHF: the chosen response's mean log-prob is to be the larger one, and its likelihood is trained.

        loss = max(0, log pi(l) / |l| - log pi(w) / |w|) - lambda log pi(w)

    Source: RRHF (arXiv 2304.05302); lambda (1 there) is `nll_weight`, as SimPO's table 3 has it.

    Args:
        logps: sums and lengths of B pairs.
        nll_weight: weight of the chosen response's negative log-likelihood, >= 0.
    """
    chosen, rejected = _means(logps)
    losses = torch.relu(rejected - chosen) - nll_weight * logps.chosen
    return PairLosses(losses, chosen.detach(), rejected.detach())


def slic_loss(logps: PairLogps, *, delta: float = 1.0, nll_weight: float = 1.0) -> PairLosses:
    """SLiC-HF: a hinge on sums of log-probs, and the likelihood of the chosen response.

        loss = max(0, delta - log pi(w) + log pi(l)) - lambda log pi(w)

    Source: SLiC-HF (arXiv 2305.10425), with w as the target of the second term as SimPO's table 3 has it;
    lambda is `nll_weight`.

    Args:
        logps: sums of B pairs.
        delta: margin in nats, > 0.
        nll_weight: weight of the chosen response's negative log-likelihood, >= 0.
    """
    losses = torch.relu(delta - logps.chosen + logps.rejected) - nll_weight * logps.chosen
    return PairLosses(losses, logps.chosen.detach(), logps.rejected.detach())


# A mean log-prob of exactly 0 would have infinite odds.
_SMALLEST_NLL = 1e-6


def orpo_loss(logps: PairLogps, *, odds_weight: float = 0.1) -> PairLosses:
    """ORPO: fine-tuning on the chosen response, and the log of the odds ratio of both.

        p(y) = exp(log pi(y) / |y|),  odds(y) = p(y) / (1 - p(y))
        loss = -log p(w) - lambda log sigmoid(log odds(w) - log odds(l))

    Source: ORPO (arXiv 2403.07691); lambda is `odds_weight`. Both terms are over the response; the
    published code takes the first one over prompt and response.

    Args:
        logps: sums and lengths of B pairs.
        odds_weight: weight of the odds-ratio term, >= 0.
    """

    def log_odds(mean: Tensor) -> Tensor:
        mean = mean.clamp(max=-_SMALLEST_NLL)
        return mean - torch.log(-torch.expm1(mean))

    chosen, rejected = _means(logps)
    chosen_odds, rejected_odds = log_odds(chosen), log_odds(rejected)
    losses = -chosen + odds_weight * _preference_nll(chosen_odds - rejected_odds)
    return PairLosses(losses, odds_weight * chosen_odds.detach(), odds_weight * rejected_odds.detach())


def kto_loss(
    logps: PairLogps, *, beta: float = 0.1, desirable_weight: float = 1.0, undesirable_weight: float = 1.0
) -> PairLosses:
    """KTO: each response is judged alone, against the policy's KL to the initial policy.

        r(y) = log pi(y) / ref(y)
        desirable:   lambda_w (1 - sigmoid(beta (r(w) - kl)))
        undesirable: lambda_l (1 - sigmoid(beta (kl - r(l))))

    Source: KTO (arXiv 2402.01306), equation 8; SimPO's table 3 leaves the constants out and sums over a pair. A row's
    loss is the mean over the responses that it has, so rows of one response and rows of two can be mixed; each row,
    not each response, then counts the same.

    Args:
        logps: sums and lengths of B rows, also under the initial policy, and `kl`. A length of 0: no such response.
        beta: strength of the KL constraint, > 0.
        desirable_weight, undesirable_weight: lambda_w and lambda_l, >= 0.

    Raises:
        ValueError: `kl` or the log-probs of the initial policy are missing.
    """
    if logps.kl is None:
        raise ValueError("KTO needs kl, the estimate of KL(pi || ref)")
    chosen, rejected = log_ratios(logps)
    desirable, undesirable = (logps.chosen_lengths > 0).float(), (logps.rejected_lengths > 0).float()
    sides = (
        desirable * desirable_weight * torch.sigmoid(-beta * (chosen - logps.kl)),
        undesirable * undesirable_weight * torch.sigmoid(-beta * (logps.kl - rejected)),
    )
    losses = (sides[0] + sides[1]) / (desirable + undesirable)
    return PairLosses(losses, beta * chosen.detach(), beta * rejected.detach())


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
