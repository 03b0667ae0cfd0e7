"""Which responses become pairs: examples, and what holds for any scores."""

import math
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simpo.onpolicy.pairs import (
    ALL_SAME,
    ALL_TIED,
    LENGTHS_DIFFER,
    PAIR_CAUSES,
    SMALL_MARGIN,
    TOO_FEW,
    Candidate,
    pick_pairs,
)


def candidates(*scores: float, texts: str = "abcdefgh", tokens: tuple[int, ...] = (5,) * 8) -> list[Candidate]:
    return [Candidate(n, texts[n], score, tokens[n]) for n, score in enumerate(scores)]


def indices(found: Any) -> list[tuple[int, int]]:
    return [(pair.chosen.index, pair.rejected.index) for pair in found]


def test_best_against_worst() -> None:
    (pair,) = pick_pairs(candidates(0.2, 0.9, -1.0, 0.4))
    assert indices([pair]) == [(1, 2)] and pair.margin == pytest.approx(1.9)


def test_the_earliest_of_equal_scores() -> None:
    assert indices(pick_pairs(candidates(1, 0, 1, 0))) == [(0, 1)]


def test_widest_margins_first() -> None:
    found = pick_pairs(candidates(0, 1, 3), "top_k", pairs_per_prompt=2)
    assert indices(found) == [(2, 0), (2, 1)]


def test_best_against_random_depends_on_seed_and_prompt_only() -> None:
    one = candidates(0, 1, 2, 3, 4)
    drawn = {key: indices(pick_pairs(one, "best_random", seed=1, key=key)) for key in map(str, range(60))}
    assert all(found[0][0] == 4 for found in drawn.values())
    assert {found[0][1] for found in drawn.values()} == {0, 1, 2, 3}
    assert drawn == {key: indices(pick_pairs(one, "best_random", seed=1, key=key)) for key in reversed(drawn)}
    assert drawn != {key: indices(pick_pairs(one, "best_random", seed=2, key=key)) for key in drawn}


def test_length_matched() -> None:
    one = candidates(0, 1, 2, tokens=(10, 50, 52))
    assert indices(pick_pairs(one, max_length_ratio=1.1)) == [(2, 1)]
    assert pick_pairs(one, max_length_ratio=1.0) == LENGTHS_DIFFER


@pytest.mark.parametrize(
    ("given_", "cause"),
    [
        (candidates(1.0), TOO_FEW),
        (candidates(1.0, 2.0, texts="aa"), ALL_SAME),
        (candidates(1.0, 1.0, 1.0), ALL_TIED),
        (candidates(1.0, 1.0, 2.0, texts="abb")[:2], ALL_TIED),
        (candidates(1.0, 1.4), SMALL_MARGIN),
    ],
)
def test_causes(given_: list[Candidate], cause: str) -> None:
    assert pick_pairs(given_, min_margin=0.5) == cause


def test_space_at_the_ends_makes_no_difference() -> None:
    assert pick_pairs([Candidate(0, "yes", 1.0, 1), Candidate(1, " yes\n", 0.0, 1)]) == ALL_SAME


responses = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "b ", "c", "d"]), st.sampled_from([-1.0, 0.0, 0.5, 0.5, 2.0]), st.integers(1, 9)
    ),
    max_size=7,
)


@given(
    responses=responses,
    choice=st.sampled_from(["best_worst", "best_random", "top_k"]),
    count=st.integers(1, 4),
    margin=st.sampled_from([0.0, 0.5, 1.5]),
    ratio=st.sampled_from([None, 1.0, 2.0]),
)
@settings(max_examples=300, deadline=None)
def test_never_a_tie_nor_the_same_text(responses: Any, choice: Any, count: int, margin: float, ratio: Any) -> None:
    given_ = [Candidate(n, *rest) for n, rest in enumerate(responses)]
    allowed = [
        (one.index, other.index)
        for one, other in permutations(given_, 2)
        if one.text.strip() != other.text.strip()
        and one.score > other.score
        and one.score - other.score >= margin
        and (ratio is None or max(one.tokens, other.tokens) <= ratio * min(one.tokens, other.tokens))
    ]
    found = pick_pairs(given_, choice, pairs_per_prompt=count, min_margin=margin, max_length_ratio=ratio, key="x")
    if isinstance(found, str):
        assert found in PAIR_CAUSES and allowed == []
        return
    assert set(indices(found)) <= set(allowed) and len(set(indices(found))) == len(found)
    assert len(found) == (min(count, len(allowed)) if choice == "top_k" else 1)
    widest = max(given_[i].score - given_[j].score for i, j in allowed)
    assert choice == "best_random" or math.isclose(found[0].margin, widest)
    assert [pair.margin for pair in found] == sorted((pair.margin for pair in found), reverse=True)
