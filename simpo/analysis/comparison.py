"""Several models on the same pairs: their numbers, and how each differs from the first one.

Shape letters: B pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from simpo.analysis.generations import GenerationStatistics
from simpo.analysis.pairs import PairScores
from simpo.analysis.statistics import Reward, accuracy, divergence, length_correlation, margins, margins_by_length
from simpo.errors import DataError
from simpo.estimates import Estimate, deviation, mean, spearman

PERCENT = "%"
PER_TOKEN = "nats/token"


@dataclass(frozen=True, eq=False)
class Scored:
    """One model.

    Args:
        name: in tables and pictures.
        pairs: its log-probs.
        path: where it is.
        objective, beta, gamma: what its run was told; empty or None where nobody knows.
        initial: whether it is the initial policy of the others.
        answers: statistics of what it writes.
    """

    name: str
    pairs: PairScores
    path: str = ""
    objective: str = ""
    beta: float | None = None
    gamma: float | None = None
    initial: bool = False
    answers: GenerationStatistics | None = None

    @property
    def moved(self) -> bool:
        """Whether there are log-probs of an initial policy, which this is not itself."""
        return self.pairs.ref_chosen is not None and not self.initial


class Measure(NamedTuple):
    """One number of each model that has it.

    Fields:
        name: what it is.
        unit: `%` (values are shares), `nats/token`, `nats`, `tokens` or empty.
        of: by the name of the model.
    """

    name: str
    unit: str
    of: dict[str, Estimate]


def on_common_pairs(models: Sequence[Scored]) -> tuple[list[Scored], list[str]]:
    """The models on the pairs that all of them have, against the initial policy where it is among them.

    Returns:
        Models, and what a reader must know of them.

    Raises:
        DataError: no pair is common to all.
    """
    shared = set.intersection(*(set(one.pairs.places()) for one in models))
    common = [place for place in models[0].pairs.places() if place in shared]
    if not common:
        raise DataError("the models have no pair in common; score all of them on one set")
    notes = [
        f"{one.name}: {len(one.pairs) - len(common)} of its {len(one.pairs)} pairs are left out, which another model "
        "does not have"
        for one in models
        if len(one.pairs) > len(common)
    ]
    found = [replace(one, pairs=one.pairs.only(common)) for one in models]
    initial = next((one for one in found if one.initial), None)
    others = [one.name for one in found if not _same_tokens(one, found[0])]
    if others:
        notes.append(
            f"{', '.join(others)}: other token counts than {found[0].name}, so another tokenizer or template. Numbers "
            "per token do not compare between them; orders of pairs do"
        )
    if initial is not None:
        found = [
            replace(one, pairs=one.pairs.against(initial.pairs)) if _same_tokens(one, initial) else one for one in found
        ]
        apart = [one.name for one in found if one.pairs.ref_chosen is None]
        if apart:
            notes.append(
                f"{', '.join(apart)}: nothing is measured against {initial.name}, whose tokens are other ones; name an "
                "initial policy with the same tokenizer"
            )
    return found, notes


def _same_tokens(one: Scored, other: Scored) -> bool:
    sides = ("chosen_lengths", "rejected_lengths")
    return all(np.array_equal(getattr(one.pairs, side), getattr(other.pairs, side)) for side in sides)


def measures(models: Iterable[Scored], beta: float = 1.0) -> list[Measure]:
    """The numbers of all models with their 95% intervals; what no model has is left out.

    Args:
        beta: scale of margins; 1 leaves them in nats per token.
    """
    models, scale = list(models), margin_unit(beta)
    of_scores: list[tuple[str, str, Callable[[PairScores], Estimate]]] = [
        ("reward accuracy, SimPO", PERCENT, lambda one: accuracy(one).share),
        ("likelihood accuracy, sum", PERCENT, lambda one: accuracy(one, "sum").share),
        ("margin", scale, lambda one: mean(margins(one, beta=beta))),
        ("margin, chosen shorter", scale, lambda one: margins_by_length(one, beta=beta).shorter),
        ("margin, chosen longer", scale, lambda one: margins_by_length(one, beta=beta).longer),
        ("margin, sd", scale, lambda one: deviation(margins(one, beta=beta))),
        ("log-prob, chosen", PER_TOKEN, lambda one: mean(one.chosen_average)),
        ("log-prob, rejected", PER_TOKEN, lambda one: mean(one.rejected_average)),
        ("length rho, chosen", "", lambda one: length_correlation(one).rho),
        ("length rho, margin", "", _margin_rho),
    ]
    of_change: list[tuple[str, str, Callable[[PairScores], Estimate]]] = [
        ("reward accuracy, DPO", PERCENT, lambda one: accuracy(one, "log_ratio").share),
        ("change of chosen log-prob", PER_TOKEN, lambda one: divergence(one).token),
        ("change per chosen response", "nats", lambda one: divergence(one).sequence),
    ]
    of_answers: list[tuple[str, str, Callable[[GenerationStatistics], Estimate]]] = [
        ("answer length", "tokens", lambda one: one.lengths.mean),
        ("answers ended", PERCENT, lambda one: one.stopped),
        ("longest repeat", PERCENT, lambda one: one.repeated),
        ("answers looping", PERCENT, lambda one: one.looping),
    ]
    moved = [one for one in models if one.moved]
    written = [(one.name, one.answers) for one in models if one.answers is not None]
    found = [Measure(name, unit, {one.name: of(one.pairs) for one in models}) for name, unit, of in of_scores]
    found += [Measure(name, unit, {one.name: of(one.pairs) for one in moved}) for name, unit, of in of_change]
    found += [Measure(name, unit, {model: of(answers) for model, answers in written}) for name, unit, of in of_answers]
    return [measure for measure in found if measure.of]


def _margin_rho(pairs: PairScores) -> Estimate:
    """Spearman's rho of the margin and of how much longer the chosen response is: figure 2a as one number."""
    return spearman(margins(pairs), pairs.chosen_lengths - pairs.rejected_lengths)


def differences(models: Sequence[Scored], beta: float = 1.0) -> list[Measure]:
    """Every model less the first one, pair by pair, with 95% intervals: what they have in common cancels out.

    Shares differ by the mean of what a pair counts under the one less under the other (-1, 0 or 1), with a t interval.
    Models with other tokens than the first have shares only.
    """
    first, *others = models
    found: list[Measure] = []
    orders: dict[str, Reward] = {"reward accuracy, SimPO": "average", "likelihood accuracy, sum": "sum"}
    for name, reward in orders.items():
        right = {one.name: (margins(one.pairs, reward) > 0).astype(float) for one in models}
        found.append(Measure(name, PERCENT, _less(right, first, others)))
    alike = [one for one in others if _same_tokens(one, first)]
    if alike:
        unit = margin_unit(beta)
        gained = {one.name: margins(one.pairs, beta=beta) for one in models}
        shorter = first.pairs.chosen_lengths < first.pairs.rejected_lengths
        found.append(Measure("margin", unit, _less(gained, first, alike)))
        if shorter.any():
            part = {name: values[shorter] for name, values in gained.items()}
            found.append(Measure("margin, chosen shorter", unit, _less(part, first, alike)))
        for side in ("chosen", "rejected"):
            averages = {one.name: getattr(one.pairs, f"{side}_average") for one in models}
            found.append(Measure(f"log-prob, {side}", PER_TOKEN, _less(averages, first, alike)))
    return found


def _less(values: Mapping[str, np.ndarray], first: Scored, others: Iterable[Scored]) -> dict[str, Estimate]:
    return {one.name: mean(values[one.name] - values[first.name]) for one in others}


def margin_unit(beta: float) -> str:
    """Of margins and rewards that are scaled by beta."""
    return PER_TOKEN if beta == 1 else f"beta {beta:g}"


def gamma_names(models: Sequence[Scored]) -> dict[str, str]:
    """Names by gamma, where gamma is what tells the models apart: one objective, one beta, several gammas, each once.

    The initial policy keeps its name. Empty where something else tells them apart too.
    """
    trained = [one for one in models if not one.initial]
    gammas = [one.gamma for one in trained]
    alike = len({(one.objective, one.beta) for one in trained}) == 1
    if len(trained) < 2 or not alike or None in gammas or len(set(gammas)) < len(gammas):
        return {}
    return {one.name: one.name if one.initial else f"gamma {one.gamma:g}" for one in models}
