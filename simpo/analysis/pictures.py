"""Every figure that the data of several models allow, as PNG with a title and a line on how to read it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from simpo.analysis import plots
from simpo.analysis.comparison import Scored, gamma_names, margin_unit
from simpo.analysis.report.blocks import Picture
from simpo.analysis.report.drawing import picture
from simpo.analysis.statistics import (
    Accuracy,
    accuracy,
    contingency,
    distribution,
    divergence,
    length_correlation,
    length_edges,
    margins,
    margins_by_length,
    rewards,
)

_T = TypeVar("_T")
_BEHIND = "Bars and bands are 95% intervals over pairs."


def draw_all(models: Sequence[Scored], beta: float = 1.0) -> Iterator[Picture]:
    """The figures of the paper for these models, one by one; those that need an initial policy or answers only with it.

    Args:
        models: bins of length are those of the first one's pairs.
        beta: scale of margins and rewards.

    Raises:
        ConfigError: matplotlib is missing.
    """
    yield from _of_all(models, beta)
    moved = [one for one in models if one.moved]
    if moved:
        yield picture(
            plots.reward_against_likelihood(_each(moved, lambda one: contingency(one.pairs))),
            "reward-against-likelihood.png",
            "Do DPO's reward and the log-prob per token order the two responses of a pair alike (figure 4b)? Top "
            "right: pairs that the reward has right although the rejected response is the more probable one. By "
            "SimPO's reward there are none.",
        )
        yield picture(
            plots.divergences(_each(moved, lambda one: divergence(one.pairs))),
            "divergences.png",
            "How the log-prob of chosen responses changed (figure 5a). It is a distance to the initial policy only for "
            f"responses that the model itself sampled. {_BEHIND}",
        )
    answered = {one.name: one.answers for one in models if one.answers is not None}
    if answered:
        yield picture(
            plots.generations(answered),
            "generations.png",
            "Greedy answers to held-out prompts. Looping: more than half of the answer is one run of tokens that "
            f"occurs twice. {_BEHIND}",
        )


def _of_all(models: Sequence[Scored], beta: float) -> Iterator[Picture]:
    unit = margin_unit(beta).replace("nats/token", "nats per token")
    edges = length_edges(models[0].pairs)
    yield picture(
        plots.margins_by_length(
            _each(models, lambda one: margins_by_length(one.pairs, beta=beta, edges=edges)), unit=unit
        ),
        "margins-by-length.png",
        "Left of the dotted line the chosen response is the shorter one. Below 0 the model prefers the rejected "
        f"response there (figure 2a). {_BEHIND}",
    )
    yield picture(
        plots.logps_against_length(_each(models, lambda one: length_correlation(one.pairs))),
        "logps-against-length.png",
        "A dot is a chosen response (figures 2b, 2c and 4a). A ρ clearly above the initial policy's says that training "
        "made long responses more probable per token.",
    )
    yield picture(
        plots.accuracies(_each(models, _accuracies)),
        "accuracies.png",
        "How often each order puts the chosen response first (figures 3a and 4c). SimPO's reward is the log-prob per "
        f"token; its sum is the less, the longer a response; DPO's is the change from the initial policy. {_BEHIND}",
    )
    spread = gamma_names(models)
    yield picture(
        plots.margin_distributions(
            _each(models, lambda one: distribution(margins(one.pairs, beta=beta)), spread), unit=unit
        ),
        "margin-distributions.png",
        "Spread of margins over pairs (figure 3b): training moves it to the right, a larger gamma flattens it. "
        "sd: standard deviation.",
    )
    yield picture(
        plots.reward_distributions(
            _each(models, lambda one: distribution(rewards(one.pairs, beta=beta)[0]), spread), unit=unit
        ),
        "reward-distributions.png",
        "Rewards of chosen responses (figure 3c). To the left of the initial policy's they got less probable, and a "
        "larger gamma moves them further: some of that is normal; far to the left, read the samples. "
        "sd: standard deviation.",
    )


def _accuracies(model: Scored) -> dict[str, Accuracy]:
    found = {"SimPO reward": accuracy(model.pairs), "sum likelihood": accuracy(model.pairs, "sum")}
    return found | ({"DPO reward": accuracy(model.pairs, "log_ratio")} if model.moved else {})


def _each(
    models: Sequence[Scored], measure: Callable[[Scored], _T], renamed: dict[str, str] | None = None
) -> dict[str, _T]:
    return {(renamed or {}).get(one.name, one.name): measure(one) for one in models}
