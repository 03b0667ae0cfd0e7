"""Histograms as SVG: plain text, sharp at any size, coloured by the page's own style."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from simpo.audit.statistics import Histogram

_WIDTH, _HEIGHT = 360, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 24, 12, 34  # a label may stand at the right end


def histogram_svg(histogram: Histogram, label: str, kinds: Sequence[str], axis: str = "tokens") -> str:
    """A histogram.

    Args:
        histogram: of at least one bin.
        label: what is counted, for readers who do not see the picture.
        kinds: CSS class of each bin's bar.
        axis: text below the horizontal axis.
    """
    edges, counts = histogram.edges, histogram.counts
    step = _tick_step(max(counts))
    top = max(1, -(-max(counts) // step)) * step

    def x(value: float) -> float:
        return _LEFT + (value - edges[0]) / (edges[-1] - edges[0]) * (_WIDTH - _LEFT - _RIGHT)

    def y(count: float) -> float:
        return _HEIGHT - _BOTTOM - count / top * (_HEIGHT - _TOP - _BOTTOM)

    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}">']
    for count in range(0, top + 1, step):
        height = y(count)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{height:.1f}" y2="{height:.1f}"/>')
        parts.append(_label(_LEFT - 6, height + 4, _short(count), "end"))
    for at, (count, kind) in enumerate(zip(counts, kinds, strict=True)):
        low, high = edges[at], edges[at + 1]
        beyond = (at == 0 and histogram.below) or (at == len(counts) - 1 and histogram.above)
        title = f"{_bounds(histogram, at)} {axis}: {count:,} pairs"
        parts.append(
            f'<rect class="{kind}{" beyond" if beyond else ""}" x="{x(low) + 0.5:.1f}" y="{y(count):.1f}" '
            f'width="{x(high) - x(low) - 1:.1f}" height="{_HEIGHT - _BOTTOM - y(count):.1f}">'
            f"<title>{escape(title)}</title></rect>"
        )
    parts += [
        _label(x(value), _HEIGHT - _BOTTOM + 15, _short(value), "middle") for value in _ticks(edges[0], edges[-1])
    ]
    parts.append(_label((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 4, axis, "middle"))
    if edges[0] < 0 < edges[-1]:
        parts.append(f'<line class="zero" x1="{x(0):.1f}" x2="{x(0):.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>')
    return "".join([*parts, "</svg>"])


def _label(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text class="tick" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _bounds(histogram: Histogram, at: int) -> str:
    low, high = histogram.edges[at], histogram.edges[at + 1]
    if at == 0 and histogram.below:
        return f"below {high:g}"
    if at == len(histogram.counts) - 1 and histogram.above:
        return f"{low:g} and more"
    return f"{low:g} to {high:g}"


def _tick_step(largest: float) -> int:
    """The distance of ticks that makes two to five of them."""
    size = 1
    while True:
        for factor in (1, 2, 5):
            if largest / (factor * size) <= 4:
                return factor * size
        size *= 10


def _ticks(low: float, high: float) -> list[int]:
    step = _tick_step(high - low)
    first = -(-int(low) // step) * step
    return list(range(first, int(high) + 1, step))


def _short(count: int) -> str:
    return f"{count / 1000:g}k" if abs(count) >= 10_000 else f"{count:,}"
