"""Every figure that the data of several models allow, as PNG with a title and a line on how to read it."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from simpo.analysis import plots
from simpo.analysis.comparison import Scored, gamma_names, margin_unit
from simpo.analysis.report.blocks import Picture
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

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_T = TypeVar("_T")
_BEHIND = "Bars and bands are 95% intervals over pairs."


def draw_all(models: Sequence[Scored], beta: float = 1.0) -> Iterator[Picture]:
    """The figures of the paper for these models, one by one; those that need an initial policy or answers only with it.

    Args:
        models: on the same pairs, the initial policy first where there is one.
        beta: scale of margins and rewards.

    Raises:
        ConfigError: matplotlib is missing.
    """
    yield from _of_all(models, beta)
    moved = [one for one in models if one.moved]
    if moved:
        yield _picture(
            "reward-against-likelihood",
            plots.reward_against_likelihood(_each(moved, lambda one: contingency(one.pairs))),
            "Do DPO's reward and the log-prob per token order the two responses of a pair alike (figure 4b)? Top "
            "right: pairs that the reward has right although the rejected response is the more probable one. By "
            "SimPO's reward there are none.",
        )
        yield _picture(
            "divergences",
            plots.divergences(_each(moved, lambda one: divergence(one.pairs))),
            "How the log-prob of chosen responses changed (figure 5a). It is a distance to the initial policy only for "
            f"responses that the model itself sampled. {_BEHIND}",
        )
    answered = {one.name: one.answers for one in models if one.answers is not None}
    if answered:
        yield _picture(
            "generations",
            plots.generations(answered),
            "Greedy answers to held-out prompts. Looping: more than half of the answer is one run of tokens that "
            f"occurs twice. {_BEHIND}",
        )


def _of_all(models: Sequence[Scored], beta: float) -> Iterator[Picture]:
    unit = margin_unit(beta).replace("nats/token", "nats per token")
    edges = length_edges(models[0].pairs)
    yield _picture(
        "margins-by-length",
        plots.margins_by_length(
            _each(models, lambda one: margins_by_length(one.pairs, beta=beta, edges=edges)), unit=unit
        ),
        "Left of the dotted line the chosen response is the shorter one. Below 0 the model prefers the rejected "
        f"response there (figure 2a). {_BEHIND}",
    )
    yield _picture(
        "logps-against-length",
        plots.logps_against_length(_each(models, lambda one: length_correlation(one.pairs))),
        "A dot is a chosen response (figures 2b, 2c and 4a). A ρ clearly above the initial policy's says that training "
        "made long responses more probable per token.",
    )
    yield _picture(
        "accuracies",
        plots.accuracies(_each(models, _accuracies)),
        f"How often each order puts the chosen response first (figures 3a and 4c). {_BEHIND}",
    )
    spread = gamma_names(models)
    yield _picture(
        "margin-distributions",
        plots.margin_distributions(
            _each(models, lambda one: distribution(margins(one.pairs, beta=beta)), spread), unit=unit
        ),
        "Spread of margins over pairs (figure 3b): a larger gamma flattens it. sd: standard deviation.",
    )
    yield _picture(
        "reward-distributions",
        plots.reward_distributions(
            _each(models, lambda one: distribution(rewards(one.pairs, beta=beta)[0]), spread), unit=unit
        ),
        "Rewards of chosen responses (figure 3c): a larger gamma moves them to the left. sd: standard deviation.",
    )


def _accuracies(model: Scored) -> dict[str, Accuracy]:
    found = {"SimPO reward": accuracy(model.pairs), "sum likelihood": accuracy(model.pairs, "sum")}
    return found | ({"DPO reward": accuracy(model.pairs, "log_ratio")} if model.moved else {})


def _each(
    models: Sequence[Scored], measure: Callable[[Scored], _T], renamed: dict[str, str] | None = None
) -> dict[str, _T]:
    return {(renamed or {}).get(one.name, one.name): measure(one) for one in models}


def _picture(name: str, figure: Figure, caption: str) -> Picture:
    with io.BytesIO() as file:
        figure.savefig(file, format="png")
        return Picture(file.getvalue(), " ".join(figure.get_suptitle().split()), caption, f"{name}.png")
