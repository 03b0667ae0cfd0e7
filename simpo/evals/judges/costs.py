"""What a judge costs: estimated before the first call, counted while it answers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

PRICES = Path(__file__).with_name("prices.yaml")
CHARACTERS_PER_TOKEN = 4.0


@dataclass(frozen=True, slots=True)
class Price:
    """Dollars per million tokens.

    Args:
        asked: of a prompt.
        answered: of an answer.
        source: who says so.
    """

    asked: float
    answered: float
    source: str


@dataclass(frozen=True, slots=True)
class Cost:
    """Calls to a model.

    Args:
        calls: how many.
        asked, answered: tokens of prompts and of answers.
        counted: of how many calls the server said the tokens; those of others are estimated from characters.
    """

    calls: int = 0
    asked: int = 0
    answered: int = 0
    counted: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.calls + other.calls,
            self.asked + other.asked,
            self.answered + other.answered,
            self.counted + other.counted,
        )

    def dollars(self, price: Price) -> float:
        """What these calls cost."""
        return (self.asked * price.asked + self.answered * price.answered) / 1e6

    def line(self, model: str, price: Price | None) -> str:
        """All of it for people, on one line."""
        about = "about " if self.counted < self.calls else ""
        tokens = f"{about}{self.asked:,} tokens asked and {self.answered:,} answered"
        if price is None:
            return f"{model}: {self.calls:,} calls, {tokens}; no price is known, see --price-in"
        return f"{model}: {self.calls:,} calls, {tokens}, {about}${self.dollars(price):,.2f} ({price.source})"


def price_of(model: str, asked: float | None = None, answered: float | None = None) -> Price | None:
    """The price of a model: as given, else from the table; None where nobody knows it.

    Args:
        model: the judge's name.
        asked, answered: dollars per million tokens; both or none.
    """
    if asked is not None and answered is not None:
        return Price(asked, answered, "prices as given")
    table = _table()
    if model not in table["models"]:
        return None
    per_asked, per_answered = table["models"][model]
    return Price(per_asked, per_answered, f"prices of {table['date']}")


def tokens_of(texts: Iterable[str]) -> int:
    """Tokens of texts, estimated: four characters each."""
    return round(sum(len(text) for text in texts) / CHARACTERS_PER_TOKEN)


@cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = yaml.safe_load(PRICES.read_text(encoding="utf-8"))
    return table
