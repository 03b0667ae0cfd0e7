"""Objectives against values worked out by hand and against their own equations."""

import math

import pytest
import torch

from simpo.losses import PairLogps, simpo_loss, step_loss


def _logps(chosen: float, rejected: float, chosen_length: int, rejected_length: int) -> PairLogps:
    return PairLogps(*(torch.tensor([float(v)]) for v in (chosen, rejected, chosen_length, rejected_length)))


def test_simpo_sigmoid_by_hand() -> None:
    result = simpo_loss(_logps(-10, -24, 10, 12), beta=2.0, gamma_beta_ratio=0.5)
    # rewards: 2 * -1 = -2 and 2 * -2 = -4; margin 2, minus gamma 1 leaves 1
    assert result.chosen_rewards.item() == pytest.approx(-2.0)
    assert result.rejected_rewards.item() == pytest.approx(-4.0)
    assert result.losses.item() == pytest.approx(math.log1p(math.exp(-1.0)), rel=1e-6)


def test_gamma_is_beta_times_ratio() -> None:
    # equal rewards: the loss is -log sigmoid(-gamma)
    for beta, ratio in ((2.0, 0.5), (10.0, 0.3), (2.5, 0.0)):
        result = simpo_loss(_logps(-5, -10, 5, 10), beta=beta, gamma_beta_ratio=ratio)
        assert result.losses.item() == pytest.approx(math.log1p(math.exp(beta * ratio)), rel=1e-5)


def test_hinge_by_hand() -> None:
    kwargs = {"beta": 2.0, "gamma_beta_ratio": 0.5, "loss_type": "hinge"}
    assert simpo_loss(_logps(-10, -24, 10, 12), **kwargs).losses.item() == pytest.approx(0.0)  # margin 1
    assert simpo_loss(_logps(-10, -12, 10, 12), **kwargs).losses.item() == pytest.approx(2.0)  # margin -1


def test_label_smoothing_mixes_both_orders() -> None:
    logps = _logps(-10, -24, 10, 12)
    plain = simpo_loss(logps, gamma_beta_ratio=0.0).losses
    swapped = simpo_loss(PairLogps(logps[1], logps[0], logps[3], logps[2]), gamma_beta_ratio=0.0).losses
    smoothed = simpo_loss(logps, gamma_beta_ratio=0.0, label_smoothing=0.2).losses
    torch.testing.assert_close(smoothed, 0.8 * plain + 0.2 * swapped)


def test_gradient_is_that_of_the_paper() -> None:
    # d loss / d chosen = -beta / |w| * sigmoid(gamma - margin); the paper's appendix F
    chosen, rejected = torch.tensor([-9.0], requires_grad=True), torch.tensor([-30.0], requires_grad=True)
    lengths = torch.tensor([6.0]), torch.tensor([15.0])
    simpo_loss(PairLogps(chosen, rejected, *lengths), beta=2.5, gamma_beta_ratio=0.4).losses.sum().backward()
    weight = 1 / (1 + math.exp(2.5 * (-1.5 + 2.0 - 0.4)))
    assert chosen.grad is not None and rejected.grad is not None
    assert chosen.grad.item() == pytest.approx(-2.5 / 6 * weight, rel=1e-5)
    assert rejected.grad.item() == pytest.approx(2.5 / 15 * weight, rel=1e-5)


def test_rewards_carry_no_gradient() -> None:
    chosen = torch.tensor([-9.0], requires_grad=True)
    result = simpo_loss(PairLogps(chosen, *(torch.tensor([v]) for v in (-30.0, 6.0, 15.0))))
    assert result.losses.requires_grad
    assert not result.chosen_rewards.requires_grad and not result.rejected_rewards.requires_grad


@pytest.mark.parametrize("kwargs", [{"loss_type": "ipo"}, {"loss_type": "hinge", "label_smoothing": 0.1}])
def test_settings_that_do_not_fit_are_refused(kwargs: dict) -> None:
    with pytest.raises(ValueError, match="loss_type"):
        simpo_loss(_logps(-1, -2, 1, 1), **kwargs)


def test_step_loss_does_not_depend_on_the_cut() -> None:
    losses, chosen = torch.tensor([0.5, 1.0, 2.0]), torch.tensor([-3.0, -8.0, -4.0])
    ones, counts = torch.ones(3), {"pairs_in_step": 3, "chosen_tokens_in_step": 10, "sft_weight": 0.1}
    whole = step_loss(losses, chosen, ones, **counts)
    parts = sum(step_loss(losses[s], chosen[s], ones[s], **counts) for s in (slice(0, 1), slice(1, 3)))
    torch.testing.assert_close(whole, parts)
    assert whole.item() == pytest.approx(3.5 / 3 + 0.1 * 15 / 10, rel=1e-6)


def test_fillers_count_for_nothing() -> None:
    counts = {"pairs_in_step": 1, "chosen_tokens_in_step": 4, "sft_weight": 0.5}
    with_filler = step_loss(torch.tensor([0.7, 9.0]), torch.tensor([-2.0, -99.0]), torch.tensor([1.0, 0.0]), **counts)
    alone = step_loss(torch.tensor([0.7]), torch.tensor([-2.0]), torch.ones(1), **counts)
    torch.testing.assert_close(with_filler, alone)
