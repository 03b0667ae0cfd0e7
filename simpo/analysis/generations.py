"""Length, repetition and ending of sampled responses.

Shape letters: N responses.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from simpo.analysis.statistics import Distribution, distribution
from simpo.errors import DataError
from simpo.estimates import Estimate, mean, share
from simpo.repetition import Tokens, distinct_n, repeated_share


@dataclass(frozen=True)
class GenerationStatistics:
    """What sampled responses look like.

    Args:
        lengths: tokens per response.
        distinct: by n, mean `distinct_n` over the responses of n tokens or more.
        repeated: mean `repeated_share`.
        looping: share of responses of which more than half is repeated.
        stopped: share of responses that the model ended itself, which is not cut by a limit of tokens.
    """

    lengths: Distribution
    distinct: dict[int, Estimate]
    repeated: Estimate
    looping: Estimate
    stopped: Estimate


def generation_statistics(
    responses: Sequence[Tokens], stopped: Iterable[bool], orders: Sequence[int] = (1, 2, 3, 4)
) -> GenerationStatistics:
    """Numbers on N responses of one model, with 95% intervals.

    A response without a token has a length, 0, and an ending, but no repetition.

    Args:
        responses: [N] each a sequence of token ids or words.
        stopped: [N] whether the model ended the response.
        orders: the n of `distinct_n`.

    Raises:
        DataError: no response, or another number of endings.
    """
    ended = [bool(one) for one in stopped]
    if not responses or len(responses) != len(ended):
        raise DataError(
            f"{len(responses)} responses and {len(ended)} endings; give one of each per response, and one at least"
        )
    repeats = [repeated_share(one) for one in responses if len(one)]
    return GenerationStatistics(
        lengths=distribution([len(one) for one in responses]),
        distinct={n: mean([distinct_n(one, n) for one in responses if len(one) >= n]) for n in orders},
        repeated=mean(repeats),
        looping=share(sum(part > 0.5 for part in repeats), len(repeats)),
        stopped=share(sum(ended), len(ended)),
    )
