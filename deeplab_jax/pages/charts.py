"""Line charts as SVG: drawn with the page's own colours, so that they follow light and dark."""

import math
from collections.abc import Mapping, Sequence

from deeplab_jax.pages.html_page import text

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 520, 260
LEFT, RIGHT, TOP, BOTTOM = 60, 12, 14, 34  # margins of the plotted area
MOST_POINTS = 300  # of a line: more cannot be told apart, and a long run has a hundred thousand

STYLE = """
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); gap: 1rem }
svg { width: 100%; height: auto; display: block; font: 15px system-ui, sans-serif }
svg text { fill: var(--soft) } .grid { stroke: var(--line) } .line { fill: none; stroke-width: 2; stroke-linejoin: round }
.line0 { stroke: var(--ink) } .line1 { stroke: var(--good) } .dot0 { fill: var(--ink) } .dot1 { fill: var(--good) }
.key0 { color: var(--ink) } .key1 { color: var(--good) }
"""


def lines(title: str, series: Mapping[str, Points], *, dots: bool = False) -> str:
    """A figure of one or two lines over the step; "" where there is nothing to draw.

    Args:
      title: what the values are, with their unit.
      series: (step, value) by name; a name is shown where there are two.
      dots: mark the points, of which there are few.
    """
    series = {name: thinned(points) for name, points in series.items() if points}
    if not series:
        return ""
    everything = [point for points in series.values() for point in points]
    steps, values = [step for step, _ in everything], [value for _, value in everything]
    ticks_x, ticks_y = ticks(0, max(steps)), ticks(min(0, *values), max(values))
    low, high, last = ticks_y[0], ticks_y[-1], max(steps) or 1

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * step / last

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / (high - low)

    parts = []
    for tick in ticks_y:
        parts.append(f'<path class="grid" d="M{LEFT} {y(tick):.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in ticks_x:
        if tick <= last:
            anchor = "end" if x(tick) > WIDTH - 40 else "middle"
            parts.append(f'<text x="{x(tick):.1f}" y="{HEIGHT - 8}" text-anchor="{anchor}">{short(tick)}</text>')
    for i, (name, points) in enumerate(series.items()):
        path = "L".join(f"{x(step):.1f} {y(value):.1f}" for step, value in points)
        parts.append(f'<path class="line line{i}" d="M{path}"/>')
        if dots or len(points) == 1:
            for step, value in points:
                tip = f"{name}: {value:.4g} at step {step:g}"
                parts.append(
                    f'<circle class="dot{i}" cx="{x(step):.1f}" cy="{y(value):.1f}" r="3.5"><title>{text(tip)}</title></circle>'
                )
    keys = ""
    if len(series) > 1:
        keys = ": " + ", ".join(f'<b class="key{i}">{text(name)}</b>' for i, name in enumerate(series))
    image = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{text(title)}">{"".join(parts)}</svg>'
    return f"<figure><figcaption>{text(title)}{keys}</figcaption>{image}</figure>"


def thinned(points: Points, most: int = MOST_POINTS) -> Points:
    """Means over equal stretches of `points`, which are at most `most`."""
    length = math.ceil(len(points) / most)
    stretches = [points[i : i + length] for i in range(0, len(points), max(length, 1))]
    return [(stretch[-1][0], sum(value for _, value in stretch) / len(stretch)) for stretch in stretches]


def ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers that reach from `low` or below to `high` or above."""
    span = (high - low) or abs(high) or 1.0
    power = 10 ** math.floor(math.log10(span / 4))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= span / 4)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{i * step:.6g}") for i in range(first, max(last, first + 1) + 1)]


def short(step: float) -> str:
    """8000 as 8k."""
    return f"{step / 1000:g}k" if step >= 1000 else f"{step:g}"
