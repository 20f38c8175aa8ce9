"""Draw SVG line charts. templates/report.css styles them for light and dark mode."""

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup, escape

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 520, 260
LEFT, RIGHT, TOP, BOTTOM = 60, 12, 14, 34  # margins around the plotted area, in SVG units
# A long run logs 100,000 points per line, but the eye cannot tell more than 300 apart at this width.
MAX_POINTS = 300


def draw_lines(title: str, series: Mapping[str, Points], *, dots: bool = False, x_name: str = "step") -> Markup:
    """Return an HTML figure that plots series against the training step, or against another quantity.

    Args:
      title: The chart title, including the unit of the values.
      series: Maps each line's name to its (step, value) points. The page's style gives each line a colour, by its position. The
        names are shown only if there is more than one line.
      dots: Whether to mark every point. This helps when there are only a few.
      x_name: The name of the quantity on the horizontal axis, shown with the points that are marked.

    Returns:
      The figure, or "" if `series` has no points.
    """
    # A line without points keeps its position, and thus its colour.
    lines = [(i, name, downsample(points)) for i, (name, points) in enumerate(series.items()) if points]
    if not lines:
        return Markup("")
    all_points = [point for *_, points in lines for point in points]
    steps, values = [step for step, _ in all_points], [value for _, value in all_points]
    ticks_x, ticks_y = choose_ticks(0, max(steps)), choose_ticks(min(0, *values), max(values))
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
            parts.append(f'<text x="{x(tick):.1f}" y="{HEIGHT - 8}" text-anchor="{anchor}">{format_step(tick)}</text>')
    for i, name, points in lines:
        path = "L".join(f"{x(step):.1f} {y(value):.1f}" for step, value in points)
        parts.append(f'<path class="line line{i}" d="M{path}"/>')
        if dots or len(points) == 1:
            for step, value in points:
                tip = escape(f"{name}: {value:.4g} at {x_name} {step:g}")
                parts.append(
                    f'<circle class="dot{i}" cx="{x(step):.1f}" cy="{y(value):.1f}" r="3.5"><title>{tip}</title></circle>'
                )
    keys = ""
    if len(series) > 1:
        keys = ": " + ", ".join(f'<b class="key{i}">{escape(name)}</b>' for i, name, _ in lines)
    image = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
    return Markup(f"<figure><figcaption>{escape(title)}{keys}</figcaption>{image}</figure>")


def downsample(points: Points, limit: int = MAX_POINTS) -> Points:
    """Reduce a line to at most `limit` points by averaging consecutive points. Each mean is drawn at its group's last step."""
    length = math.ceil(len(points) / limit)
    groups = [points[i : i + length] for i in range(0, len(points), max(length, 1))]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]


def choose_ticks(low: float, high: float) -> list[float]:
    """Return two to six round, evenly spaced tick values that cover the range from `low` to `high`."""
    span = (high - low) or abs(high) or 1.0
    power = 10 ** math.floor(math.log10(span / 4))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= span / 4)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{i * step:.6g}") for i in range(first, max(last, first + 1) + 1)]


def format_step(step: float) -> str:
    """Return a step number as a short label, such as "8k" for 8000."""
    return f"{step / 1000:g}k" if step >= 1000 else f"{step:g}"
