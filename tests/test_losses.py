"""Objectives against values worked out by hand and against their papers' formulas in float64."""

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from simpo.losses import PairLogps, PairLosses, simpo_loss, step_loss
from simpo.objectives import OBJECTIVES


class Pairs(NamedTuple):
    """What the formulas below are written in: w chosen, l rejected, |w| and |l| as n and m; u and v the log-probs of w
    and l under the initial policy; z the estimate of the KL."""

    w: Tensor
    l: Tensor  # noqa: E741
    n: Tensor
    m: Tensor
    u: Tensor
    v: Tensor
    z: Tensor


class Case(NamedTuple):
    """An objective at some settings, its loss as its paper has it, its reward, and its loss for the pair `HAND`.

    The formulas are written plainly, for float64: log(sigmoid(x)) as it stands, probabilities as exp(log-prob).
    """

    objective: str
    settings: dict[str, Any]
    loss: Callable[[Pairs], Tensor]
    reward: Callable[[Tensor, Tensor, Tensor], Tensor]  # of a response's log-prob, length, log-prob under ref
    by_hand: float
    flipped: bool = False  # the number by hand is that of the pair with w and l swapped

    def __str__(self) -> str:
        return " ".join([self.objective, *(f"{key}={value}" for key, value in self.settings.items())])


def _bt(x: Tensor) -> Tensor:
    return -torch.log(torch.sigmoid(x))


def _odds(mean: Tensor) -> Tensor:
    return mean.exp() / (1 - mean.exp())


# log pi -10 and -24, 10 and 12 tokens: means -1 and -2. log ref -12 and -21: log-ratios 2 and -3, or 0.2 and -0.25 per
# token. KL 0.5 nats. Below, s(x) is -log sigmoid(x) = log(1 + exp(-x)).
HAND = (-10.0, -24.0, 10, 12, -12.0, -21.0, 0.5)

CASES = [
    # 2 * (-1 + 2) - 1 = 1, s(1)
    Case("simpo", {"beta": 2.0, "gamma_beta_ratio": 0.5}, lambda p: _bt(2 / p.n * p.w - 2 / p.m * p.l - 1),
         lambda y, n, ref: 2 * y / n, 0.313262),
    # 2 * (-1 + 2) = 2, s(2)
    Case("simpo", {"beta": 2.0, "gamma_beta_ratio": 0.0}, lambda p: _bt(2 / p.n * p.w - 2 / p.m * p.l),
         lambda y, n, ref: 2 * y / n, 0.126928),
    # 0.1 * (-10 + 24) - 0.1 * 4 = 1, s(1)
    Case("simpo", {"beta": 0.1, "gamma_beta_ratio": 4.0, "length_normalization": False},
         lambda p: _bt(0.1 * p.w - 0.1 * p.l - 0.4), lambda y, n, ref: 0.1 * y, 0.313262),
    # margin 1 as in the first: 0.9 s(1) + 0.1 s(-1) = 0.9 * 0.313262 + 0.1 * 1.313262
    Case("simpo", {"beta": 2.0, "gamma_beta_ratio": 0.5, "label_smoothing": 0.1},
         lambda p: 0.9 * _bt(2 * p.w / p.n - 2 * p.l / p.m - 1) + 0.1 * _bt(1 + 2 * p.l / p.m - 2 * p.w / p.n),
         lambda y, n, ref: 2 * y / n, 0.413262),
    # swapped: 2 * (-2 + 1) - 1 = -3, 1 + 3
    Case("simpo", {"beta": 2.0, "gamma_beta_ratio": 0.5, "loss_type": "hinge"},
         lambda p: (2 - 2 * p.w / p.n + 2 * p.l / p.m).clamp(min=0), lambda y, n, ref: 2 * y / n, 4.0, True),
    # 0.1 * (2 + 3) = 0.5, s(0.5)
    Case("dpo", {"beta": 0.1}, lambda p: _bt(0.1 * (p.w - p.u) - 0.1 * (p.l - p.v)),
         lambda y, n, ref: 0.1 * (y - ref), 0.474077),
    # 0.2 * (2 + 3) - 0.2 * 1 = 0.8: 0.75 s(0.8) + 0.25 s(-0.8) = 0.75 * 0.371101 + 0.25 * 1.171101
    Case("dpo", {"beta": 0.2, "gamma_beta_ratio": 1.0, "label_smoothing": 0.25},
         lambda p: (0.75 * _bt(0.2 * (p.w - p.u) - 0.2 * (p.l - p.v) - 0.2)
                    + 0.25 * _bt(0.2 + 0.2 * (p.l - p.v) - 0.2 * (p.w - p.u))),
         lambda y, n, ref: 0.2 * (y - ref), 0.571101),
    # 2 * (0.2 + 0.25) - 2 * 0.25 = 0.4, s(0.4)
    Case("dpo", {"beta": 2.0, "gamma_beta_ratio": 0.25, "length_normalization": True},
         lambda p: _bt(2 * (p.w - p.u) / p.n - 2 * (p.l - p.v) / p.m - 0.5),
         lambda y, n, ref: 2 * (y - ref) / n, 0.513015),
    # (2 + 3 - 1 / 0.25)^2
    Case("ipo", {"tau": 0.125}, lambda p: (p.w - p.u - p.l + p.v - 4) ** 2,
         lambda y, n, ref: 0.125 * (y - ref), 1.0),
    # (0.2 + 0.25 - 1 / 2)^2
    Case("ipo", {"tau": 1.0, "length_normalization": True},
         lambda p: ((p.w - p.u) / p.n - (p.l - p.v) / p.m - 0.5) ** 2, lambda y, n, ref: (y - ref) / n, 0.0025),
    # (1 - sigmoid(0.1 * (2 - 0.5)) + 1 - sigmoid(0.1 * (0.5 + 3))) / 2 = (0.462570 + 0.413382) / 2
    Case("kto", {"beta": 0.1},
         lambda p: 1 - (torch.sigmoid(0.1 * (p.w - p.u - p.z)) + torch.sigmoid(0.1 * (p.z - p.l + p.v))) / 2,
         lambda y, n, ref: 0.1 * (y - ref), 0.437976),
    # (3 * 0.462570 + 0.5 * 0.413382) / 2
    Case("kto", {"beta": 0.1, "desirable_weight": 3.0, "undesirable_weight": 0.5},
         lambda p: (3 - 3 * torch.sigmoid(0.1 * (p.w - p.u) - 0.1 * p.z)
                    + 0.5 - 0.5 * torch.sigmoid(0.1 * p.z - 0.1 * (p.l - p.v))) / 2,
         lambda y, n, ref: 0.1 * (y - ref), 0.797201),
    # 0.1 * (2 + 3) + 0.05 * (10 - 12) = 0.4, s(0.4): the shorter chosen response is pushed further
    Case("r-dpo", {"beta": 0.1, "length_penalty": 0.05},
         lambda p: _bt(0.1 * (p.w - p.u) - 0.1 * (p.l - p.v) + 0.05 * p.n - 0.05 * p.m),
         lambda y, n, ref: 0.1 * (y - ref), 0.513015),
    # s(0.1 * 14) + 0.5 * 10 = 0.220417 + 5
    Case("cpo", {"beta": 0.1, "nll_weight": 0.5}, lambda p: _bt(0.1 * p.w - 0.1 * p.l) - 0.5 * p.w,
         lambda y, n, ref: 0.1 * y, 5.220417),
    # odds 1 / (e - 1) and 1 / (e^2 - 1), their ratio e + 1: 1 + 0.5 * log(1 + 1 / (e + 1)) = 1 + 0.5 * 0.238183
    Case("orpo", {"odds_weight": 0.5},
         lambda p: -p.w / p.n + 0.5 * _bt(torch.log(_odds(p.w / p.n) / _odds(p.l / p.m))),
         lambda y, n, ref: 0.5 * torch.log(_odds(y / n)), 1.119091),
    # swapped: max(0, -1 + 2) + 0.5 * 24
    Case("rrhf", {"nll_weight": 0.5}, lambda p: (p.l / p.m - p.w / p.n).clamp(min=0) - 0.5 * p.w,
         lambda y, n, ref: y / n, 13.0, True),
    # max(0, 15 + 10 - 24) + 0.1 * 10
    Case("slic-hf", {"delta": 15.0, "nll_weight": 0.1}, lambda p: (15 - p.w + p.l).clamp(min=0) - 0.1 * p.w,
         lambda y, n, ref: y, 2.0),
    # rewards 0.5 * (1 - e) and 0.5 * (1 - e^2): 0.5 * (e^2 - e) - 0.5 * 0.2 = 2.235387, s(2.235387)
    Case("alphapo", {"beta": 0.5, "gamma_beta_ratio": 0.2, "alpha": 1.0},
         lambda p: _bt(0.5 * (torch.exp(-p.l / p.m) - torch.exp(-p.w / p.n)) - 0.1),
         lambda y, n, ref: 0.5 * (1 - torch.exp(-y / n)), 0.101609),
    # rewards 2 * (1 / e - 1) and 2 * (1 / e^2 - 1): 2 * (0.367879 - 0.135335) - 0.2 = 0.265088, s(0.265088)
    Case("alphapo", {"beta": 2.0, "gamma_beta_ratio": 0.1, "alpha": -1.0},
         lambda p: _bt(2 * torch.exp(p.w / p.n) - 2 * torch.exp(p.l / p.m) - 0.2),
         lambda y, n, ref: 2 * (torch.exp(y / n) - 1), 0.569361),
    # SimPO: 2 * (-1 + 2) - 1 = 1, s(1)
    Case("alphapo", {"beta": 2.0, "gamma_beta_ratio": 0.5, "alpha": 0.0},
         lambda p: _bt(2 * p.w / p.n - 2 * p.l / p.m - 1), lambda y, n, ref: 2 * y / n, 0.313262),
]  # fmt: skip

each_case = pytest.mark.parametrize("case", CASES, ids=str)


def _cases_without(*settings: str, objective: str | None = None) -> pytest.MarkDecorator:
    cases = [case for case in CASES if case.objective != objective and not case.settings.keys() & set(settings)]
    return pytest.mark.parametrize("case", cases, ids=str)


def _pairs(*values: Any) -> Pairs:
    return Pairs(*(torch.as_tensor(value, dtype=torch.float64) for value in values))


def _flip(p: Pairs) -> Pairs:
    return Pairs(p.l, p.w, p.m, p.n, p.v, p.u, p.z)


def _logps(p: Pairs, dtype: torch.dtype = torch.float32) -> PairLogps:
    w, l, u, v, z = (value.detach().to(dtype) for value in (p.w, p.l, p.u, p.v, p.z))  # noqa: E741
    return PairLogps(w.requires_grad_(), l.requires_grad_(), p.n.long(), p.m.long(), u, v, z)


def _run(case: Case, logps: PairLogps, **settings: float) -> PairLosses:
    return OBJECTIVES[case.objective].bind(case.settings | settings)(logps)


def _random_pairs(count: int = 200, *, tokens: int = 40, seed: int = 0) -> Pairs:
    """Responses of up to `tokens` tokens at -3 to -0.01 nats a token, and up to half a nat a token off under ref."""
    draw = torch.Generator().manual_seed(seed)
    n, m = (torch.randint(1, tokens + 1, (count,), generator=draw) for _ in range(2))
    w, l, off_w, off_l = torch.rand(4, count, generator=draw, dtype=torch.float64)  # noqa: E741
    w, l = (-(0.01 + 2.99 * mean) * length for mean, length in ((w, n), (l, m)))  # noqa: E741
    return _pairs(w.float(), l.float(), n, m, (w + (off_w - 0.5) * n).float(), (l + (off_l - 0.5) * m).float(), 1.25)


def _gradients(losses: Tensor, logps: Any) -> tuple[Tensor, Tensor]:
    return torch.autograd.grad(losses.sum(), logps[:2])  # type: ignore[return-value]


def test_every_objective_and_setting_has_a_case() -> None:
    given = {(case.objective, knob) for case in CASES for knob in case.settings}
    assert given == {(name, knob) for name, spec in OBJECTIVES.items() for knob in spec.knobs}


@each_case
def test_by_hand(case) -> None:
    pair = _flip(_pairs(*HAND)) if case.flipped else _pairs(*HAND)
    assert _run(case, _logps(pair)).losses.item() == pytest.approx(case.by_hand, abs=2e-6)


@pytest.mark.parametrize("tokens", [1, 40])
@each_case
def test_the_formula_of_the_paper(case, tokens) -> None:
    pairs = _random_pairs(tokens=tokens)
    pairs.w.requires_grad_(), pairs.l.requires_grad_()
    logps, expected = _logps(pairs), case.loss(pairs)
    result = _run(case, logps)
    assert result.losses.dtype == torch.float32 and result.losses.shape == expected.shape
    torch.testing.assert_close(result.losses.double(), expected, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(_gradients(result.losses, logps), _gradients(expected, pairs), strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-6)
    rewards = case.reward(pairs.w, pairs.n, pairs.u), case.reward(pairs.l, pairs.m, pairs.v)
    for ours, theirs in zip((result.chosen_rewards, result.rejected_rewards), rewards, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5, check_dtype=False)
        assert not ours.requires_grad


@each_case
def test_extremes_stay_finite(case) -> None:
    sums, lengths = (0.0, -1e-8, -1e-3, -1.0, -50.0, -1e4), (1, 1000)
    grid = itertools.product(sums, sums, lengths, lengths, (0.0, -1e4), (0.0, -1e4))
    columns = [torch.tensor(column) for column in zip(*grid, strict=True)]
    for kl in (0.0, 1e4):
        logps = _logps(_pairs(*columns, kl))
        result = _run(case, logps)
        gradients = _gradients(result.losses, logps)
        for values in (*result, *gradients, *(gradient.square().sum() for gradient in gradients)):  # as norms take them
            assert values.isfinite().all()


@_cases_without("label_smoothing", objective="ipo")  # they hold back where the margin is wide
def test_a_likelier_chosen_and_an_unlikelier_rejected_response_never_cost(case) -> None:
    logps = _logps(_random_pairs())
    chosen, rejected = _gradients(_run(case, logps).losses, logps)
    assert (chosen <= 0).all() and (chosen < 0).any()
    assert (rejected >= 0).all() and (rejected > 0).any()


# What two equal responses cost, each of `length` tokens and log-prob `y`.
EQUAL: dict[str, Callable[[dict[str, Any], float, int], float]] = {
    "simpo": lambda s, y, n: math.log1p(math.exp(s["beta"] * s["gamma_beta_ratio"])),
    "alphapo": lambda s, y, n: math.log1p(math.exp(s["beta"] * s["gamma_beta_ratio"])),
    "dpo": lambda s, y, n: math.log1p(math.exp(s["beta"] * s.get("gamma_beta_ratio", 0.0))),
    "ipo": lambda s, y, n: 1 / (4 * s["tau"] ** 2),
    "r-dpo": lambda s, y, n: math.log(2),
    "cpo": lambda s, y, n: math.log(2) - s["nll_weight"] * y,
    "orpo": lambda s, y, n: s["odds_weight"] * math.log(2) - y / n,
    "rrhf": lambda s, y, n: -s["nll_weight"] * y,
    "slic-hf": lambda s, y, n: s["delta"] - s["nll_weight"] * y,
    "kto": lambda s, y, n: 0.5,  # sigmoid(x) + sigmoid(-x) = 1
}


@_cases_without("label_smoothing", "loss_type", "desirable_weight")
def test_equal_responses(case) -> None:
    for y, length in ((-7.0, 1), (-7.0, 14)):
        pair = _pairs(y, y, length, length, -3.0, -3.0, 0.75)
        expected = EQUAL[case.objective](case.settings, y, length)
        assert _run(case, _logps(pair)).losses.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "case", [case for case in CASES if "beta" in case.settings and "loss_type" not in case.settings], ids=str
)
def test_beta_zero_is_indifferent(case) -> None:
    penalty = {"length_penalty": 0.0} if case.objective == "r-dpo" else {}
    logps = _logps(_random_pairs())
    losses = _run(case, logps, beta=1e-9, **penalty).losses
    weights = (case.settings.get("desirable_weight", 1.0) + case.settings.get("undesirable_weight", 1.0)) / 2
    base = weights / 2 if case.objective == "kto" else math.log(2)
    nll = -case.settings.get("nll_weight", 0.0)
    torch.testing.assert_close(losses, base + nll * logps.chosen, rtol=1e-5, atol=1e-5)
    chosen, rejected = _gradients(losses, logps)
    torch.testing.assert_close(chosen, torch.full_like(chosen, nll), rtol=0, atol=1e-6)
    torch.testing.assert_close(rejected, torch.zeros_like(rejected), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", [name for name, spec in OBJECTIVES.items() if "length_normalization" in spec.knobs])
def test_one_token_needs_no_normalisation(name) -> None:
    pairs = _random_pairs(tokens=1)
    sums, means = (
        OBJECTIVES[name].bind({"length_normalization": flag})(_logps(pairs)).losses for flag in (False, True)
    )
    torch.testing.assert_close(sums, means)
    longer = _random_pairs(tokens=40)
    sums, means = (
        OBJECTIVES[name].bind({"length_normalization": flag})(_logps(longer)).losses for flag in (False, True)
    )
    assert (sums - means).abs().max() > 0.1


@pytest.mark.parametrize("alpha", [1e-6, -1e-6])
def test_alphapo_becomes_simpo(alpha) -> None:
    pairs, settings = _random_pairs(), {"beta": 2.5, "gamma_beta_ratio": 0.4}
    ours, theirs = _logps(pairs), _logps(pairs)
    near = OBJECTIVES["alphapo"].bind(settings | {"alpha": alpha})(ours).losses
    limit = OBJECTIVES["simpo"].bind(settings)(theirs).losses
    torch.testing.assert_close(near, limit, rtol=1e-5, atol=1e-5)
    for a, b in zip(_gradients(near, ours), _gradients(limit, theirs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_ipo_is_at_rest_at_its_margin() -> None:
    # log-ratios 2 and -3, 1 / (2 * 0.1) = 5
    logps = _logps(_pairs([-10.0], [-24.0], 10, 12, -12.0, -21.0, 0.0))
    losses = OBJECTIVES["ipo"].bind({"tau": 0.1})(logps).losses
    assert losses.item() == pytest.approx(0, abs=1e-9)
    assert [gradient.item() for gradient in _gradients(losses, logps)] == pytest.approx([0, 0], abs=1e-5)


def test_hinges_rest_beyond_their_margins() -> None:
    # means -1 and -3, sums -10 and -36: far enough for all of them, so only the likelihood is trained
    for name, settings in (
        ("simpo", {"loss_type": "hinge", "beta": 2.0, "gamma_beta_ratio": 0.5}),
        ("rrhf", {"nll_weight": 0.0}),
        ("slic-hf", {"nll_weight": 0.0, "delta": 25.0}),
    ):
        logps = _logps(_pairs([-10.0], [-36.0], 10, 12, 0.0, 0.0, 0.0))
        losses = OBJECTIVES[name].bind(settings)(logps).losses
        assert [losses.item(), *(gradient.item() for gradient in _gradients(losses, logps))] == [0, 0, 0], name


def test_gradient_is_that_of_the_paper() -> None:
    # d loss / d chosen = -beta / |w| * sigmoid(gamma - margin); the paper's appendix F
    logps = _logps(_pairs([-9.0], [-30.0], 6, 15, 0.0, 0.0, 0.0))
    losses = simpo_loss(logps, beta=2.5, gamma_beta_ratio=0.4).losses
    weight = 1 / (1 + math.exp(2.5 * (-1.5 + 2.0 - 0.4)))
    chosen, rejected = _gradients(losses, logps)
    assert chosen.item() == pytest.approx(-2.5 / 6 * weight, rel=1e-5)
    assert rejected.item() == pytest.approx(2.5 / 15 * weight, rel=1e-5)


@pytest.mark.parametrize("name", [name for name, spec in OBJECTIVES.items() if spec.reference])
@pytest.mark.parametrize("missing", ["ref_chosen", "ref_rejected"])
def test_references_are_asked_for(name, missing) -> None:
    logps = _logps(_pairs(*HAND))._replace(**{missing: None})
    with pytest.raises(ValueError, match="ref_chosen and ref_rejected"):
        OBJECTIVES[name].bind({})(logps)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_nothing_else_is_asked_for(name) -> None:
    spec, logps = OBJECTIVES[name], _logps(_pairs(*HAND))
    few = logps if spec.reference else logps._replace(ref_chosen=None, ref_rejected=None)
    few = few if spec.kl else few._replace(kl=None)
    assert spec.bind({})(few).losses.item() == spec.bind({})(logps).losses.item()


def test_kto_asks_for_the_kl() -> None:
    with pytest.raises(ValueError, match="needs kl"):
        OBJECTIVES["kto"].bind({})(_logps(_pairs(*HAND))._replace(kl=None))


@pytest.mark.parametrize("stray", [0.0, -50.0])  # what stands where there is no response counts for nothing
def test_kto_rows_of_one_response(stray) -> None:
    # both, only chosen, only rejected
    w, l, u, v = [-10.0, -10.0, stray], [-24.0, stray, -24.0], [-12.0, -12.0, stray / 2], [-21.0, stray / 2, -21.0]  # noqa: E741
    logps = _logps(_pairs(w, l, [10, 10, 0], [12, 0, 12], u, v, 0.5))
    losses = OBJECTIVES["kto"].bind({"beta": 0.1, "desirable_weight": 3.0})(logps).losses
    desirable, undesirable = 3 / (1 + math.exp(0.15)), 1 / (1 + math.exp(0.35))
    assert losses.tolist() == pytest.approx([(desirable + undesirable) / 2, desirable, undesirable], rel=1e-5)
    chosen, rejected = _gradients(losses, logps)
    # d/dx sigmoid(x) = sigmoid(x) sigmoid(-x); a row of two counts each of them half
    slope_w, slope_l = -3 * 0.1 * 0.462570 * 0.537430, 0.1 * 0.413382 * 0.586618
    assert chosen.tolist() == pytest.approx([slope_w / 2, slope_w, 0], rel=1e-4)
    assert rejected.tolist() == pytest.approx([slope_l / 2, 0, slope_l], rel=1e-4)


@pytest.mark.parametrize("kwargs", [{"loss_type": "ipo"}, {"loss_type": "hinge", "label_smoothing": 0.1}])
def test_settings_that_do_not_fit_are_refused(kwargs: dict) -> None:
    with pytest.raises(ValueError, match="loss_type"):
        simpo_loss(_logps(_pairs(*HAND)), **kwargs)


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
