"""The values that one setting is searched over: a list, or a span of numbers."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Choices:
    """A list of values, each a number, text, boolean or None."""

    listed: tuple[Any, ...]

    def values(self) -> tuple[Any, ...]:
        """All values in their order."""
        return self.listed

    def samples(self) -> tuple[Any, ...]:
        """Values whose validity stands for that of all."""
        return self.listed

    def snap(self, value: Any) -> Any:
        """The listed value that a sampler's answer means."""
        return value

    def __str__(self) -> str:
        return ", ".join(show_value(value) for value in self.listed)


@dataclass(frozen=True)
class Span:
    """Numbers from `low` to `high`, both included.

    Attributes:
        low, high: bounds.
        step: distance of the values; None: any number between.
        log: sampled evenly in the logarithm.
        whole: whole numbers only.
    """

    low: float
    high: float
    step: float | None = None
    log: bool = False
    whole: bool = False

    def values(self) -> tuple[Any, ...] | None:
        """All values, or None where there is no end of them."""
        if self.step is None:
            return None
        count = int((self.high - self.low) / self.step + 1e-9) + 1
        return tuple(self.snap(self.low + at * self.step) for at in range(count))

    def samples(self) -> tuple[Any, ...]:
        """Values whose validity stands for that of all: bounds of settings are intervals."""
        return (self.snap(self.low), self.snap(self.high))

    def snap(self, value: float) -> float:
        """A number without the noise of binary fractions; 4 significant digits where there is no step."""
        if self.whole:
            return round(value)
        if self.step is not None:
            at = round((value - self.low) / self.step)
            return float(f"{self.low + at * self.step:.12g}")
        return float(min(max(float(f"{value:.4g}"), self.low), self.high))

    def __str__(self) -> str:
        how = f" in steps of {self.step:g}" if self.step is not None else " by logarithm" if self.log else ""
        return f"{self.low:g} to {self.high:g}{how}"


Axis = Choices | Span


def show_value(value: Any) -> str:
    """A value as in YAML, numbers short: 3e-07, 0.5, true, null."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:.6g}" if isinstance(value, float) else str(value)
