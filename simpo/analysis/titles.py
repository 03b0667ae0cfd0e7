"""What is seen in a picture, in one line; nobody is named best or worst whose interval meets that of another."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import NormalDist

import numpy as np

from simpo.analysis.generations import GenerationStatistics
from simpo.analysis.statistics import (
    Accuracy,
    Contingency,
    Distribution,
    Divergence,
    LengthCorrelation,
    MarginsByLength,
)
from simpo.estimates import Estimate


def of_margins_by_length(models: Mapping[str, MarginsByLength]) -> str:
    """Where margins are below 0, with intervals so wide that all bins of a model hold together (Bonferroni): of ten
    bins at 95% each, one is below 0 by chance in a fifth of all sets."""
    below = {name: sum(_clearly_below(one, len(found.bins)) for one in found.bins) for name, found in models.items()}
    seen = [f"{name} in {count} of {len(models[name].bins)}" for name, count in below.items() if count]
    if not seen:
        return "No bin of length has a margin clearly below 0"
    if len(seen) < 3:
        return f"Margin below 0: {', '.join(seen)} bins of length"
    return f"Margin below 0 in some bins of length: {len(seen)} of {len(models)} models"


def _clearly_below(one: Estimate, bins: int) -> bool:
    normal = NormalDist()
    wider = normal.inv_cdf(1 - 0.025 / bins) / normal.inv_cdf(0.975)
    return one.value + wider * (one.high - one.value) < 0


def of_logps_against_length(models: Mapping[str, LengthCorrelation]) -> str:
    """Whether long responses are more probable per token."""
    rising = [name for name, found in models.items() if found.rho.low > 0]
    first = apart({name: found.rho for name, found in models.items()})
    if not rising:
        return "Log-prob per token does not clearly rise with length"
    if first:
        return f"Log-prob per token rises with length most in {first}"
    part = f" in {len(rising)} of {len(models)} models" if len(models) > 1 else ""
    return f"Log-prob per token rises with length{part}"


def of_distributions(models: Mapping[str, Distribution], what: str) -> str:
    """Which spread most and least; of a single one where it lies."""
    if len(models) == 1:
        (found,) = models.values()
        return f"{what.capitalize()}: median {found.percentiles[50]:.3g}, {found.positive.value:.0%} above 0"
    spreads = {name: found.deviation for name, found in models.items()}
    ends = [(word, apart(spreads, least=word == "least")) for word in ("most", "least")]
    seen = [f"{word} in {name} (sd {spreads[name].value:.2g})" for word, name in ends if name]
    return f"{what.capitalize()}s " + (f"spread {', '.join(seen)}" if seen else f"have sd {span(spreads, '.2g')}")


def of_accuracies(models: Mapping[str, Mapping[str, Accuracy]], score: str) -> str:
    """How often one score is right, and in whom most often."""
    shares = {name: found[score].share for name, found in models.items() if score in found}
    first, right = apart(shares), f"{score[:1].upper()}{score[1:]} order is right"
    if first:
        return f"{right} most often in {first}: {shares[first].value:.1%}"
    return f"{right} in {span(shares, '.1%')} of pairs" + (", none clearly ahead" if len(shares) > 1 else "")


def of_contingencies(models: Mapping[str, Contingency]) -> str:
    """How much of what DPO's reward has right likelihood reverses."""
    parts = {name: found.contradicted for name, found in models.items() if found.contradicted.count}
    if not parts:
        return "The DPO reward puts no pair right"
    return f"Likelihood reverses {span(parts, '.0%')} of what the DPO reward has right"


def of_divergences(models: Mapping[str, Divergence], side: str) -> str:
    """Whose log-probs went furthest from the initial policy's."""
    far = max(models, key=lambda name: abs(np.nan_to_num(models[name].token.value)))
    moved = models[far].token
    if not (moved.low > 0 or moved.high < 0):
        return f"The log-prob of {side} responses has not clearly changed"
    up_to, whose = ("up to ", f" in {far}") if len(models) > 1 else ("", "")
    return f"{side.capitalize()} responses change by {up_to}{moved.value:+.2g} nats per token{whose}"


def of_generations(models: Mapping[str, GenerationStatistics]) -> str:
    """How many responses end, and in whom fewest."""
    endings = {name: found.stopped for name, found in models.items()}
    least = apart(endings, least=True)
    if least:
        return f"Responses end by themselves least often in {least}: {endings[least].value:.0%}"
    return f"{span(endings, '.0%')} of responses end by themselves"


def apart(found: Mapping[str, Estimate], least: bool = False) -> str | None:
    """Who has the largest (or least) value, with an interval that meets no other; None where nobody stands out.

    That is a strict rule for models on the same pairs: a paired comparison tells smaller differences apart.
    """
    for name, one in found.items():
        others = [found[other] for other in found if other != name]
        if others and all(one.high < other.low if least else one.low > other.high for other in others):
            return name
    return None


def span(found: Mapping[str, Estimate], form: str) -> str:
    """The least and the largest value, once where they look the same.

    >>> span({"A": Estimate(0.5, 0.4, 0.6, 9), "B": Estimate(0.25, 0.2, 0.3, 9)}, ".0%")
    '25% to 50%'
    """
    values = [one.value for one in found.values()]
    return " to ".join(dict.fromkeys((f"{min(values):{form}}", f"{max(values):{form}}")))
