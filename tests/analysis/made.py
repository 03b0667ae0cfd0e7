"""Made-up scores of pairs with known properties."""

import math
from typing import Any

import numpy as np

from simpo.analysis.pairs import PairScores


def scores(chosen: Any, rejected: Any, lengths: Any = None, **more: Any) -> PairScores:
    """Scores written out by hand; lengths are [(chosen, rejected), ...], 10 each without."""
    lengths = np.full((len(chosen), 2), 10) if lengths is None else np.array(lengths)
    return PairScores(np.arange(len(chosen)), chosen, rejected, lengths[:, 0], lengths[:, 1], **more)


def rho_of(r: float) -> float:
    """Spearman's rho of two normal variables of correlation r, whatever rising functions they go through."""
    return 6 / math.pi * math.asin(r / 2)


def population(
    count: int, *, seed: int, r: float = 0.0, slope: float = 0.0, margin: float = 0.15, spread: float = 0.25
) -> PairScores:
    """Pairs of a model with a known length bias.

    Args:
        r: correlation of log length and log-prob per token, before the slope.
        slope: nats per token that 100 tokens more of the chosen response add to its margin.
        margin, spread: of log-probs per token.
    """
    rng = np.random.default_rng(seed)
    common, own = rng.normal(size=count), rng.normal(size=(2, count))
    sizes = 0.6 * common + 0.8 * own  # responses to one prompt are of similar length
    lengths = np.maximum(1, np.exp(5.4 + 0.6 * sizes).round()).astype(int)
    noise = rng.normal(size=(2, count))
    average = -1.3 + 0.3 * (r * sizes + math.sqrt(1 - r * r) * noise) * spread / 0.25
    average[0] += margin + slope * (lengths[0] - lengths[1]) / 100
    average = np.minimum(average, -0.01)
    return scores(average[0] * lengths[0], average[1] * lengths[1], lengths.T)


class TokenModel:
    """Draws every token from one distribution; token 0 ends a response, so lengths are geometric."""

    def __init__(self, probabilities: list[float]) -> None:
        self.probabilities = np.array(probabilities)

    def sample(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """[count, V] how often each response holds each token."""
        lengths = rng.geometric(self.probabilities[0], size=count)
        words = self.probabilities[1:] / self.probabilities[1:].sum()
        return np.column_stack([np.ones(count, dtype=int), rng.multinomial(lengths - 1, words)])

    def logps(self, responses: np.ndarray) -> np.ndarray:
        return responses @ np.log(self.probabilities)

    def token_kl(self, other: "TokenModel") -> float:
        return float(self.probabilities @ np.log(self.probabilities / other.probabilities))

    @property
    def mean_length(self) -> float:
        return float(1 / self.probabilities[0])
