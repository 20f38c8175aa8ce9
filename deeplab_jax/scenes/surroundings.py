"""Draw the surroundings of a street: the sky, the ground, buildings and parks."""

import numpy as np
from PIL import Image

from deeplab_jax.scenes.painter import Painter, Points
from deeplab_jax.scenes.shapes import (
    BARK,
    BRICK,
    GLASS,
    GRASS,
    LEAF,
    PICKET,
    PLASTER,
    STEEL,
    arc,
    band,
    blob,
    cells,
    hull,
    pick,
    pick_color,
    rect,
    shade,
)

# The sky and the ground.


def draw_sky(c: Painter) -> None:
    """Fill the image with sky: a gradient with up to four clouds."""
    rng, w, h = c.rng, c.width, c.height
    top = np.array(pick_color(rng, ((88, 142, 206), (120, 160, 200), (150, 164, 180))))
    low = 0.35 * top + 0.65 * np.array((232, 232, 228))
    ramp = np.clip(np.arange(h) / c.horizon, 0, 1)[:, None, None]
    c.image.paste(Image.fromarray((top + ramp * (low - top)).astype(np.uint8)).resize((w, h), Image.Resampling.NEAREST))
    clouds = []
    for _ in range(rng.integers(0, 5)):
        x, y, s = rng.uniform(0.2, 0.8) * w, rng.uniform(0.02, 0.75) * c.horizon, rng.uniform(0.03, 0.07) * w
        puffs = [blob(rng, np.array((x + d * s, y)), s, 0.28 * s * rng.uniform(0.7, 1.3)) for d in (-0.9, 0, 0.8)]
        clouds += [(puff, (240, 241, 242)) for puff in puffs]
    c.paint("sky", rect(0, w - 1, 0, h - 1), None, clouds)


def draw_grass(c: Painter, outline: Points, x0: float, x1: float) -> None:
    """Draw dry grass inside an outline (in pixels), with tufts scattered between x0 and x1 (in metres)."""
    grass, z = pick_color(c.rng, GRASS), 1 / c.rng.uniform(1 / 40, 1 / 3, (180, 1))
    tufts = c.project(c.rng.uniform(x0, x1, (180, 1)) + np.array((-0.05, 0.05, 0)), np.array((0, 0, 0.26)), z)
    c.paint("terrain", outline, grass, [(tufts[::2], shade(grass, 0.72)), (tufts[1::2], shade(grass, 1.22))])


def draw_sidewalk(c: Painter, x0: float, x1: float) -> None:
    """Draw a slab pavement between kerb stones, often with a grass strip along the street."""
    slabs, side, kerb = pick_color(c.rng, ((168, 160, 152),)), np.sign(x0), min(x0, x1, key=abs)
    seams = [cells(np.arange(2.0, 40, 1.2), [x0], 0.07, x1 - x0), *(band(x, x + 0.04) for x in np.linspace(x0, x1, 4)[1:3])]
    edges = [(band(x - 0.1, x + 0.1), shade(slabs, 1.22)) for x in (x0, x1)]
    c.paint("sidewalk", band(x0, x1), slabs, [*((seam, shade(slabs, 0.8)) for seam in seams), *edges], c.project_ground)
    if c.rng.random() < 0.55:
        near, far = kerb + 0.15 * side, kerb + c.rng.uniform(0.8, 1.1) * side
        draw_grass(c, c.project_ground(band(near, far)), min(near, far), max(near, far))


def draw_rail_track(c: Painter, x0: float, x1: float) -> None:
    """Draw a tram track bed. Its class, `rail track`, is ignored in evaluation."""
    parts = [(cells(np.arange(2.0, 60, 1.1), [x1 - 3.0], 0.35, 2.5), (92, 76, 64))]
    parts += [(band(x, x + 0.12), STEEL) for x in (x1 - 2.5, x1 - 1.0)]
    c.paint("rail track", band(x0, x1), (132, 124, 114), parts, c.project_ground)


def draw_road(c: Painter, x0: float, x1: float) -> None:
    """Draw an asphalt road with a dashed centre line, solid edge lines and sometimes a pedestrian crossing."""
    dashes = cells(np.arange(c.rng.uniform(2, 5), 70, 5), [x0 + 3.33], 2.2, 0.14)
    lines = [dashes, band(x0 + 0.25, x0 + 0.39), band(x1 - 0.4, x1 - 0.26)]
    if c.rng.random() < 0.35:
        lines.append(cells([c.rng.uniform(9, 20)], np.arange(x0 + 0.5, x1 - 0.6, 0.9), 2.5, 0.45))
    asphalt = pick_color(c.rng, ((92, 92, 96),))
    c.paint("road", band(x0, x1), asphalt, [(line, (228, 226, 214)) for line in lines], c.project_ground)


# Buildings and parks along the street.


def draw_skyline(c: Painter) -> None:
    """Draw distant houses and trees, so that the street does not end in the sky."""
    rng, scale = c.rng, c.focal / 80
    for x in rng.uniform(-45, 45, 7):
        if rng.random() < 0.45:
            roof = rng.uniform(6, 15)
            windows = cells(np.arange(-5, 5, 2.5), np.arange(1, roof - 1.5, 3), 1.2, 1.6)
            plaster, on = pick_color(rng, PLASTER), c.facing_plane(x, 85)
            c.paint("building", rect(-6, 6, 0, roof), plaster, [(windows, shade(GLASS, 1.2))], on)
        else:
            draw_foliage(c, blob(rng, c.project(x, 3, 80), 9 * scale, rng.uniform(4, 6) * scale), leaves=30)


def draw_frontage(c: Painter, x: float) -> None:
    """Draw the buildings and parks along one side of the street, from far to near."""
    edges = np.cumsum([c.rng.uniform(2.5, 3.5), *c.rng.uniform((5, 7, 9, 12, 15), (8, 12, 14, 18, 25))])
    for near, far in zip(edges[-2::-1], edges[:0:-1], strict=True):
        pick(c.rng, {draw_building: 0.3, draw_fenced_park: 0.28, draw_walled_park: 0.28, draw_park: 0.14})(c, x, near, far)


def draw_building(c: Painter, x: float, near: float, far: float) -> None:
    """Draw a building, with its front along the street and a gable facing the camera."""
    rng, on, side = c.rng, c.facade_plane(x), np.sign(x)
    floors = 1 + 3.2 * np.arange(rng.integers(2, 6))
    roof, plaster, glass = floors[-1] + 2.8, pick_color(rng, PLASTER), shade(GLASS, rng.uniform(0.7, 1.3))
    pitch, width, tall = rng.uniform(1.9, 2.8), rng.uniform(0.9, 1.3), rng.uniform(1.4, 1.9)
    places = np.arange(near + 0.6, far - width, pitch)
    gable = cells(x + side * np.arange(1.2, 9, 2.6) - 0.5, floors, 1.0, tall)
    parts = [(c.facing_plane(0, near)(gable), glass), (on(band(0, roof, near, far)), plaster)]
    trim = [cells(places - 0.12, floors - 0.12, width + 0.24, tall + 0.24)]
    trim += [band(y - 1, y - 0.8, near, far) for y in floors[1:]]
    parts += [(on(p), shade(plaster, 1.3)) for p in trim]
    parts += [(on(cells(places, floors, width, tall)), glass), (on(band(roof - 0.5, roof, near, far)), shade(plaster, 0.6))]
    faces = np.concatenate([on(band(0, roof, near, far)), c.project(x + side * 9, np.array((0, roof)), near)])
    c.paint("building", hull(faces), shade(plaster, 0.78), parts)


def draw_fenced_park(c: Painter, x: float, near: float, far: float) -> None:
    """Draw trees and bushes behind a picket fence."""
    draw_park(c, x, near, far)
    top, color = c.rng.uniform(1.2, 1.6), pick_color(c.rng, PICKET)
    pickets = (cells(np.arange(near, far - 0.15, 0.32), [0.05], 0.17, top - 0.1), color)
    beams = [(band(y, y + 0.14, near, far), shade(color, 0.8)) for y in (0.3, top - 0.4)]
    c.paint("fence", band(0, top, near, far), None, [*beams, pickets], c.facade_plane(x))


def draw_walled_park(c: Painter, x: float, near: float, far: float) -> None:
    """Draw trees and bushes behind a brick wall."""
    draw_park(c, x, near, far)
    top, color = c.rng.uniform(1.5, 2.2), pick_color(c.rng, BRICK)
    rows = np.arange(0, top, 0.36)
    joints = [cells(np.arange(near + 0.45 * k, far - 0.1, 0.9), rows[k::2], 0.07, 0.36) for k in (0, 1)]
    parts = [(p, shade(color, 1.35)) for p in (cells([near], rows, far - near, 0.06), *joints)]
    parts.append((band(top - 0.16, top, near, far), shade(color, 0.6)))
    c.paint("wall", band(0, top, near, far), color, parts, c.facade_plane(x))


def draw_park(c: Painter, x: float, near: float, far: float) -> None:
    """Draw trees, and sometimes a bush, behind the frontage line at x."""
    rng, side = c.rng, np.sign(x)
    for z in np.sort(rng.uniform(near, far, rng.integers(1, 3)))[::-1]:
        draw_tree(c, x + side * rng.uniform(2.5, 7), z + 2)
    if rng.random() < 0.5:
        z = rng.uniform(near, far) + 1
        draw_foliage(c, blob(rng, c.project(x + side * 2.5, 0.7, z), 1.8 * c.focal / z, 1.1 * c.focal / z))


def draw_tree(c: Painter, x: float, z: float) -> None:
    """Draw a tree. The trunk is part of the class `vegetation`, as in Cityscapes."""
    top, bark, (rx, ry) = c.rng.uniform(3.6, 6.0), pick_color(c.rng, BARK), c.rng.uniform(1.5, 2.3, 2) * c.focal / z
    c.paint("vegetation", rect(-0.22, 0.22, 0, top), bark, [(rect(0.02, 0.3, 0, top), shade(bark, 0.7))], c.facing_plane(x, z))
    draw_foliage(c, blob(c.rng, c.project(x, top, z), rx, ry))


def draw_foliage(c: Painter, outline: Points, leaves: int = 64) -> None:
    """Draw leaves inside an outline (in pixels)."""
    green, low, high = pick_color(c.rng, LEAF), outline.min(0), outline.max(0)
    tufts = c.rng.uniform(low, high, (leaves, 1, 2)) + arc(0, 0, max(1.2, 0.08 * min(high - low)), 0, 300, 6)
    c.paint("vegetation", outline, green, [(tufts[k::3], shade(green, f)) for k, f in enumerate((0.68, 1.22, 1.45))])
