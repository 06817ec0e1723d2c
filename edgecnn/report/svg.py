"""Line plots as SVG, written by hand: a box has no matplotlib, and a page takes them as they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from edgecnn.report.html import Html, text

_WIDTH, _HEIGHT = 760, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 16, 28, 40
_COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd")
_TICKS = 5


@dataclass(frozen=True)
class Line:
    """One line of a plot: its name, and points by x and y, equally many."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    dashed: bool = False


def plot_lines(title: str, x_label: str, y_label: str, lines: Sequence[Line], from_zero: bool = True) -> Html:
    """Draw lines over common axes; points that are not finite are left out, and a plot without any says so."""
    points = [(x, y) for line in lines for x, y in zip(line.x, line.y, strict=True) if math.isfinite(x + y)]
    if not points:
        return Html(f"<p>{text(title)}: nothing to plot</p>")
    across = _Scale.over([x for x, _ in points], _LEFT, _WIDTH - _RIGHT, from_zero=False)
    up = _Scale.over([y for _, y in points], _HEIGHT - _BOTTOM, _TOP, from_zero)
    parts = [f'<text x="{_LEFT}" y="16" font-weight="bold">{text(title)}</text>', *_grid(across, up, x_label, y_label)]
    for number, line in enumerate(lines):
        parts += _line(line, _COLOURS[number % len(_COLOURS)], across, up, number)
    return Html(
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{text(title)}" xmlns="http://www.w3.org/2000/svg" '
        'font-family="system-ui, sans-serif" font-size="11" fill="currentColor" style="max-width:100%">\n'
        + "\n".join(parts)
        + "\n</svg>"
    )


@dataclass(frozen=True)
class _Scale:
    """From values to places on the page, with round ticks."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float, from_zero: bool) -> _Scale:
        low, high = min(values), max(values)
        low = min(low, 0.0) if from_zero else low
        if high == low:
            high = low + (abs(low) or 1.0)
        step = _round_step((high - low) / _TICKS)
        first = math.floor(low / step) if from_zero else math.ceil(low / step - 1e-9)
        last = math.ceil(high / step - 1e-9) if from_zero else math.floor(high / step + 1e-9)
        ticks = tuple(number * step for number in range(first, last + 1))
        return cls(min(low, ticks[0]) if ticks else low, max(high, ticks[-1]) if ticks else high, start, end, ticks)

    def at(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def _round_step(step: float) -> float:
    """Round up to 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-9))


def _grid(across: _Scale, up: _Scale, x_label: str, y_label: str) -> list[str]:
    parts = []
    for tick in up.ticks:
        y = up.at(tick)
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#8886"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:,.6g}</text>')
    for tick in across.ticks:
        x, base = across.at(tick), _HEIGHT - _BOTTOM
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{base}" y2="{base + 4}" stroke="currentColor"/>')
        parts.append(f'<text x="{x:.1f}" y="{base + 16}" text-anchor="middle">{tick:,.6g}</text>')
    parts.append(f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 6}" text-anchor="end">{text(x_label)}</text>')
    parts.append(f'<text x="{_LEFT}" y="{_HEIGHT - 6}">{text(y_label)}</text>')
    return parts


def _line(line: Line, colour: str, across: _Scale, up: _Scale, number: int) -> list[str]:
    points = " ".join(
        f"{across.at(x):.1f},{up.at(y):.1f}" for x, y in zip(line.x, line.y, strict=True) if math.isfinite(x + y)
    )
    dashes = ' stroke-dasharray="6 4"' if line.dashed else ""
    legend = _WIDTH - _RIGHT - 150 * (number + 1)
    return [
        f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"{dashes}/>',
        f'<line x1="{legend}" x2="{legend + 18}" y1="12" y2="12" stroke="{colour}" stroke-width="2"{dashes}/>',
        f'<text x="{legend + 22}" y="16">{text(line.name)}</text>',
    ]
