"""Line charts as SVG, styled by templates/report.css: they follow light and dark."""

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup, escape

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 520, 260
LEFT, RIGHT, TOP, BOTTOM = 60, 12, 14, 34  # margins of the plotted area
MOST_POINTS = 300  # of a line: more are indistinguishable, and a long run has a hundred thousand


def lines(title: str, series: Mapping[str, Points], *, dots: bool = False) -> Markup:
    """Return a figure of up to three lines over the step; "" where there is nothing to draw.

    Args:
      title: what the values are, with their unit.
      series: (step, value) by name; names are shown where there are several.
      dots: mark the points, of which there are few.
    """
    series = {name: thin(points) for name, points in series.items() if points}
    if not series:
        return Markup("")
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
                tip = escape(f"{name}: {value:.4g} at step {step:g}")
                parts.append(
                    f'<circle class="dot{i}" cx="{x(step):.1f}" cy="{y(value):.1f}" r="3.5"><title>{tip}</title></circle>'
                )
    keys = ""
    if len(series) > 1:
        keys = ": " + ", ".join(f'<b class="key{i}">{escape(name)}</b>' for i, name in enumerate(series))
    image = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
    return Markup(f"<figure><figcaption>{escape(title)}{keys}</figcaption>{image}</figure>")


def thin(points: Points, most: int = MOST_POINTS) -> Points:
    """Return means over equal stretches of `points`, at most `most` of them."""
    length = math.ceil(len(points) / most)
    stretches = [points[i : i + length] for i in range(0, len(points), max(length, 1))]
    return [(stretch[-1][0], sum(value for _, value in stretch) / len(stretch)) for stretch in stretches]


def ticks(low: float, high: float) -> list[float]:
    """Return three to six round numbers that reach from `low` or below to `high` or above."""
    span = (high - low) or abs(high) or 1.0
    power = 10 ** math.floor(math.log10(span / 4))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= span / 4)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{i * step:.6g}") for i in range(first, max(last, first + 1) + 1)]


def short(step: float) -> str:
    """Return 8000 as 8k."""
    return f"{step / 1000:g}k" if step >= 1000 else f"{step:g}"
