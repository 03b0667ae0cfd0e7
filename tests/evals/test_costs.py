"""Estimates and counts of tokens and dollars."""

import pytest

from simpo.evals.judges.costs import Cost, Price, price_of, tokens_of


def test_lines() -> None:
    cost = Cost(2, 1_000_000, 500_000, 2)
    price = price_of("gpt-4-1106-preview")
    assert price == Price(10.0, 30.0, "prices of 2024-12-27")
    assert cost.dollars(price) == pytest.approx(25)
    assert (
        cost.line("j", price)
        == "j: 2 calls, 1,000,000 tokens asked and 500,000 answered, $25.00 (prices of 2024-12-27)"
    )
    estimated = cost + Cost(1, 4, 4, 0)
    assert estimated.line("j", None) == (
        "j: 3 calls, about 1,000,004 tokens asked and 500,004 answered; no price is known, see --price-in"
    )


def test_prices_that_are_given_come_first() -> None:
    assert price_of("mine") is None
    assert price_of("gpt-4", 1.0, 2.0) == Price(1.0, 2.0, "prices as given")
    assert price_of("gpt-4") == Price(30.0, 60.0, "prices of 2024-12-27")


def test_four_characters_are_a_token() -> None:
    assert tokens_of(["abcd" * 10, "ab"]) == 10
