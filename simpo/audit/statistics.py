"""Numbers about a set of pairs: lengths, the bias towards longer answers, tokens of an epoch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simpo.audit.facts import TokenFacts

PERCENTILES = (5, 25, 50, 75, 95, 99)
_BINS = 24


@dataclass(frozen=True)
class Histogram:
    """Counts between edges. Values beyond the outermost edges are counted in the outermost bins.

    Args:
        edges: one more than counts, evenly spaced.
        counts: values in each bin.
        below, above: whether the first and the last bin also hold what lies beyond them.
    """

    edges: list[float]
    counts: list[int]
    below: bool
    above: bool


@dataclass(frozen=True)
class Lengths:
    """How long one side is, in tokens."""

    total: int
    mean: float
    shortest: int
    longest: int
    percentiles: dict[str, float]
    histogram: Histogram


@dataclass(frozen=True)
class LengthBias:
    """How far length and preference go together.

    Args:
        chosen_longer, rejected_longer, equal: shares of pairs.
        mean_difference, median_difference: tokens of chosen less rejected.
        correlation: of being chosen with length, over all responses (point-biserial), in [-1, 1].
        histogram: of the difference; its middle bin is centred on 0.
    """

    chosen_longer: float
    rejected_longer: float
    equal: float
    mean_difference: float
    median_difference: float
    correlation: float
    histogram: Histogram


@dataclass(frozen=True)
class EpochTokens:
    """Tokens that a model works through in an epoch, in three ways of laying pairs out.

    Args:
        padded: chosen and rejected rows of a batch padded to its longest; batches of `pairs_per_batch` at random.
        packed: no padding; each answer with its own prompt.
        shared: no padding; one prompt for both answers.
        pairs_per_batch: of the padded batches.
        saved_by_packing, saved_by_sharing: share of the tokens of the layout before.
    """

    padded: int
    packed: int
    shared: int
    pairs_per_batch: int
    saved_by_packing: float
    saved_by_sharing: float


@dataclass(frozen=True)
class SetStatistics:
    """All numbers about one set."""

    pairs: int
    prompt: Lengths
    chosen: Lengths
    rejected: Lengths
    bias: LengthBias
    epoch: EpochTokens


def set_statistics(facts: TokenFacts, pairs_per_batch: int, seed: int = 0) -> SetStatistics:
    """The numbers of a set.

    Args:
        facts: of at least one pair.
        pairs_per_batch: pairs of a padded batch, to compare with.
        seed: of the order of the padded batches.
    """
    return SetStatistics(
        pairs=len(facts.prompt),
        prompt=_lengths(facts.prompt),
        chosen=_lengths(_present(facts.chosen)),
        rejected=_lengths(_present(facts.rejected)),
        bias=length_bias(facts.chosen, facts.rejected),
        epoch=epoch_tokens(facts.prompt, facts.chosen, facts.rejected, pairs_per_batch, seed),
    )


def _present(lengths: np.ndarray) -> np.ndarray:
    """Without the sides that rows of one response do not have."""
    return lengths[lengths > 0] if (lengths > 0).any() else np.zeros(1, dtype=np.int64)


def _lengths(values: np.ndarray) -> Lengths:
    return Lengths(
        total=int(values.sum()),
        mean=float(values.mean()),
        shortest=int(values.min()),
        longest=int(values.max()),
        percentiles={str(p): float(np.percentile(values, p)) for p in PERCENTILES},
        histogram=length_histogram(values),
    )


def length_histogram(values: np.ndarray, bins: int = _BINS) -> Histogram:
    """Lengths from 0 on, to the 99th percentile; the last bin holds the tail."""
    width = _nice(np.percentile(values, 99) / bins)
    edges = np.arange(bins + 1) * width
    edges = edges[: max(2, int(np.searchsorted(edges, values.max(), side="right")) + 1)]
    return _histogram(values, edges)


def difference_histogram(values: np.ndarray, bins: int = _BINS) -> Histogram:
    """Differences around 0, to the 98th percentile of their size; the outer bins hold the tails."""
    half = bins // 2
    width = _nice(np.percentile(np.abs(values), 98) / half)
    return _histogram(values, (np.arange(-half, half + 2) - 0.5) * width)


def _histogram(values: np.ndarray, edges: np.ndarray) -> Histogram:
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
    below, above = bool((values < edges[0]).any()), bool((values >= edges[-1]).any())
    return Histogram(edges.tolist(), counts.tolist(), below, above)


def _nice(width: float) -> int:
    """The next of 1, 2, 4, 5, 10, 15, 20, 25, 30, 40, 50, ...: widths that read well on an axis."""
    scale = 10 ** max(0, int(np.floor(np.log10(max(width, 1)))))
    steps = (step * scale for step in (1, 1.5, 2, 2.5, 3, 4, 5, 10))
    return next(int(step) for step in steps if step >= width and step == int(step))


def length_bias(chosen: np.ndarray, rejected: np.ndarray) -> LengthBias:
    """Length against preference, from lengths in tokens [N]; of rows with two responses, if there are any."""
    paired = (chosen > 0) & (rejected > 0)
    chosen, rejected = (chosen[paired], rejected[paired]) if paired.any() else (np.zeros(1), np.zeros(1))
    difference = chosen - rejected
    both = np.concatenate([chosen, rejected]).astype(np.float64)
    spread = float(both.std())
    return LengthBias(
        chosen_longer=float((difference > 0).mean()),
        rejected_longer=float((difference < 0).mean()),
        equal=float((difference == 0).mean()),
        mean_difference=float(difference.mean()),
        median_difference=float(np.median(difference)),
        # the two groups are of one size, so this is Pearson's r with being chosen as 1 and 0
        correlation=float(difference.mean()) / (2 * spread) if spread else 0.0,
        histogram=difference_histogram(difference),
    )


def epoch_tokens(
    prompt: np.ndarray, chosen: np.ndarray, rejected: np.ndarray, pairs_per_batch: int, seed: int = 0
) -> EpochTokens:
    """Tokens of an epoch, from lengths in tokens [N]."""
    order = np.random.default_rng(seed).permutation(len(prompt))
    longest, answers = prompt + np.maximum(chosen, rejected), (chosen > 0).astype(np.int64) + (rejected > 0)
    starts = np.arange(0, len(longest), pairs_per_batch)
    rows = np.add.reduceat(answers[order], starts)
    padded = int((np.maximum.reduceat(longest[order], starts) * rows).sum())
    packed = int((answers * prompt + chosen + rejected).sum())
    shared = int((prompt + chosen + rejected).sum())
    return EpochTokens(padded, packed, shared, pairs_per_batch, 1 - packed / padded, 1 - shared / packed)
