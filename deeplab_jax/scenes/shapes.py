"""Colours, random choices and basic polygons for drawing objects."""

import functools
from collections.abc import Sequence

import numpy as np

from deeplab_jax.labels import Color
from deeplab_jax.scenes.painter import Points, T

# Vehicles, clothes and walls share colours, so a network has to tell the classes apart by shape and pattern.
PAINT = ((176, 40, 38), (38, 74, 140), (228, 228, 224), (52, 56, 62), (150, 154, 160), (222, 170, 46), (44, 112, 78))
PLASTER = ((196, 170, 138), (170, 120, 98), (150, 150, 152), (206, 196, 172), (140, 92, 80), (182, 186, 160))
BRICK = ((168, 92, 74), (150, 144, 136), (190, 160, 124))
PICKET = ((232, 228, 216), (150, 108, 70), (70, 78, 84), (176, 190, 196))
METAL = ((126, 130, 132), (92, 98, 100), (84, 96, 88))
LEAF, GRASS, BARK = ((58, 98, 48), (72, 108, 44), (50, 88, 58)), ((170, 160, 84), (150, 152, 78)), ((96, 72, 52),)
SKIN, HAIR = ((236, 196, 164), (198, 146, 108), (128, 84, 58)), ((40, 30, 26), (110, 76, 46), (160, 150, 140))
TROUSERS = ((44, 52, 78), (60, 58, 56), (120, 106, 86))
GLASS, DARK, STEEL = (62, 82, 98), (30, 30, 32), (150, 152, 156)
WHITE, RED, YELLOW = (236, 236, 232), (206, 38, 38), (240, 190, 50)


def pick(rng: np.random.Generator, weights: dict[T, float]) -> T:
    """Return a random key from `weights`, which maps keys to probabilities."""
    return list(weights)[rng.choice(len(weights), p=list(weights.values()))]


def pick_color(rng: np.random.Generator, colors: Sequence[Color]) -> Color:
    """Return a random colour from `colors`, with slightly varied brightness and hue."""
    which, bright, *tint = rng.random(5).tolist()
    r, g, b = (int(v + 10 * t - 5) for v, t in zip(colors[int(which * len(colors))], tint, strict=True))
    return shade((r, g, b), 0.86 + 0.28 * bright)


def shade(color: Color, factor: float) -> Color:
    """Return the colour with its channels multiplied by `factor` and clipped to [0, 255]."""
    r, g, b = (min(255, max(0, int(v * factor))) for v in color)
    return r, g, b


# Shapes. If a shape consists of several polygons, they are stacked along the first axis.


@functools.cache
def path(points: str) -> Points:
    """Parse an SVG-style string "x,y x,y ..." into a polygon [k, 2]."""
    return np.array([p.split(",") for p in points.split()], float)


def rect(x0: float, x1: float, y0: float, y1: float) -> Points:
    """Return a rectangle as a polygon [4, 2]."""
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])


def band(low: float, high: float, near: float = 2.0, far: float = 90.0) -> Points:
    """Return a strip along the street as a polygon [20, 2] in (z, v) coordinates, with v from `low` to `high`.

    The strip has many corners so that it can follow bends in the street.
    """
    z = near * (far / near) ** np.linspace(0, 1, 10)
    return np.array([(*z, *z[::-1]), (low,) * 10 + (high,) * 10]).T


def cells(us: Sequence[float] | Points, vs: Sequence[float] | Points, du: float, dv: float) -> Points:
    """Return a grid of du x dv rectangles, [len(us) * len(vs), 4, 2], with lower left corners at each (u, v)."""
    grid = np.empty((len(vs), len(us), 1, 2))
    grid[..., 0], grid[..., 1] = np.asarray(us)[:, None], np.asarray(vs)[:, None, None]
    return grid.reshape(-1, 1, 2) + rect(0, du, 0, dv)


def arc(x: float, y: float, radius: float, start: float = 0, stop: float = 330, n: int = 12) -> Points:
    """Return n points [n, 2] on a circle, from angle `start` to `stop` in degrees. The default is a full circle."""
    turn = np.arange(n) * (np.radians(stop - start) / (n - 1)) + np.radians(start)
    return np.array([x + radius * np.cos(turn), y + radius * np.sin(turn)]).T


def bars(starts: Points, stops: Points, width: float) -> Points:
    """Return straight lines of the given width as rectangles [n, 4, 2]."""
    along = (stops - starts) / np.linalg.norm(stops - starts, axis=-1, keepdims=True)
    across = width / 2 * along[..., ::-1] * (-1, 1)
    return np.stack([starts - across, stops - across, stops + across, starts + across], -2)


def blob(rng: np.random.Generator, middle: Points, rx: float, ry: float) -> Points:
    """Return an ellipse with an irregular outline, [18, 2]."""
    return middle + arc(0, 0, 1, 0, 340, 18) * rng.uniform(0.82, 1.12, (18, 1)) * (rx, ry)


def hull(points: Points) -> Points:
    """Return the convex hull of points [n, 2] as a polygon [k, 2]."""

    def half(run: list) -> list:
        chain: list = []
        for x, y in run:
            while len(chain) > 1:
                (x0, y0), (x1, y1) = chain[-2:]
                if (x1 - x0) * (y - y0) > (y1 - y0) * (x - x0):
                    break
                chain.pop()
            chain.append((x, y))
        return chain[:-1]

    ordered = sorted(points.tolist())
    return np.array(half(ordered) + half(ordered[::-1]))
