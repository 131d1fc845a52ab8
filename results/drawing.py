"""Line charts as SVG text, without a plotting library: the same bytes from the same numbers, on every machine."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # Okabe and Ito's
WIDTH, PLOT = 480, 220  # of a panel, and the height of its axes, in pixels
LEFT, RIGHT, TOP, BOTTOM = 52, 16, 34, 46  # around the axes
ENTRY, SHORT = 17, 26  # height of a line of the legend; letters of a name that has room beside another


@dataclass(frozen=True)
class Line:
    """Points (x, y, half the length of the error bar; 0 for none) under one name."""

    label: str
    points: tuple[tuple[float, float, float], ...]


@dataclass(frozen=True)
class Panel:
    """One chart. ticks: where x is marked, on a logarithmic axis; none: at round numbers, on a linear one."""

    title: str
    x: str
    lines: tuple[Line, ...]
    ticks: tuple[float, ...] = ()

    @property
    def across(self) -> int:
        """How many names stand beside each other in the legend."""
        return 1 if any(len(line.label) > SHORT for line in self.lines) else 2

    @property
    def legend(self) -> int:
        """The height of the legend."""
        return ENTRY * math.ceil(len(self.lines) / self.across)


@dataclass(frozen=True)
class Scale:
    """Where values stand, in pixels, between two ends of an axis."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> str:
        """The place of a value, as SVG has it."""
        low, high, at = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        share = (at - low) / (high - low) if high > low else 0.5
        return f"{self.start + share * (self.end - self.start):.1f}"


def svg(panels: Sequence[Panel], columns: int = 2) -> str:
    """The panels side by side, `columns` in a row."""
    heights = [
        max(TOP + PLOT + BOTTOM + panel.legend for panel in panels[start : start + columns])
        for start in range(0, len(panels), columns)
    ]
    width, height = WIDTH * min(columns, len(panels)), sum(heights) + 8
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for number, panel in enumerate(panels):
        x, y = WIDTH * (number % columns), sum(heights[: number // columns])
        parts += [f'<g transform="translate({x} {y})">', *draw(panel), "</g>"]
    return "\n".join([*parts, "</svg>"]) + "\n"


def draw(panel: Panel) -> Iterator[str]:
    """The elements of one panel: title, axes, lines, legend."""
    yield f'<text x="{LEFT}" y="20" font-weight="bold">{escape(panel.title)}</text>'
    points = [point for line in panel.lines for point in line.points]
    if not points:
        yield f'<text x="{LEFT}" y="{TOP + 20}" fill="#666666">no run recorded yet</text>'
        return
    marks = ticks(min(y - bar for _, y, bar in points), max(y + bar for _, y, bar in points))
    xs = panel.ticks or ticks(min(x for x, _, _ in points), max(x for x, _, _ in points), outside=False)
    ends = (min([*xs, *(x for x, _, _ in points)]), max([*xs, *(x for x, _, _ in points)]))
    across = Scale(*ends, LEFT, WIDTH - RIGHT, log=bool(panel.ticks))
    up = Scale(marks[0], marks[-1], TOP + PLOT, TOP)
    yield from axes(panel.x, xs, marks, across, up)
    for number, line in enumerate(panel.lines):
        yield from trace(line, COLOURS[number % len(COLOURS)], across, up)
        yield from entry(line.label, number, panel.across)


def axes(label: str, xs: Sequence[float], ys: Sequence[float], across: Scale, up: Scale) -> Iterator[str]:
    """Grid lines with their numbers, and the name of the horizontal axis."""
    bottom = TOP + PLOT
    for y, text in zip(ys, numbers(ys), strict=True):
        yield f'<path d="M{LEFT} {up(y)}H{WIDTH - RIGHT}" stroke="#dddddd"/>'
        yield f'<text x="{LEFT - 6}" y="{up(y)}" dy="4" text-anchor="end">{text}</text>'
    for x, text in zip(xs, numbers(xs), strict=True):
        yield f'<path d="M{across(x)} {bottom}v4" stroke="#666666"/>'
        yield f'<text x="{across(x)}" y="{bottom + 17}" text-anchor="middle">{text}</text>'
    yield f'<path d="M{LEFT} {TOP}V{bottom}H{WIDTH - RIGHT}" fill="none" stroke="#666666"/>'
    yield f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{bottom + 34}" text-anchor="middle">{escape(label)}</text>'


def trace(line: Line, colour: str, across: Scale, up: Scale) -> Iterator[str]:
    """A line through its points; few points are dots too, with their error bars."""
    places = [f"{across(x)} {up(y)}" for x, y, _ in line.points]
    if places:
        yield f'<path d="M{" L".join(places)}" fill="none" stroke="{colour}" stroke-width="1.8"/>'
    for x, y, bar in line.points if len(line.points) <= 12 else ():
        yield f'<circle cx="{across(x)}" cy="{up(y)}" r="3" fill="{colour}"/>'
        if bar:
            yield f'<path d="M{across(x)} {up(y - bar)}V{up(y + bar)}" stroke="{colour}"/>'


def entry(label: str, number: int, side_by_side: int) -> Iterator[str]:
    """A line's name and colour, under the axes."""
    x = LEFT + (number % side_by_side) * (WIDTH - LEFT - RIGHT) // side_by_side
    y = TOP + PLOT + BOTTOM + ENTRY * (number // side_by_side) + 8
    yield f'<path d="M{x} {y - 4}h18" stroke="{COLOURS[number % len(COLOURS)]}" stroke-width="3"/>'
    yield f'<text x="{x + 24}" y="{y}">{escape(label)}</text>'


def ticks(low: float, high: float, outside: bool = True) -> list[float]:
    """Four to nine round numbers from one end to the other, the outermost at or beyond the ends, or within them."""
    span = high - low or abs(high) / 10 or 1.0
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = next(step for step in (power, 2 * power, 5 * power, 10 * power) if span / step <= 6)
    first = math.floor(low / step + 1e-9) if outside else math.ceil(low / step - 1e-9)
    last = math.ceil(high / step - 1e-9) if outside else math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, max(last, first + 1) + 1)]


def numbers(values: Sequence[float]) -> list[str]:
    """The numbers at an axis, all with as many decimals as the one that has most."""
    decimals = max(len(f"{value:.6f}".rstrip("0").partition(".")[2]) for value in values)
    return [f"{value:.{decimals}f}" for value in values]
