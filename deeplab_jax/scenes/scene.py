"""The layout of a street, back to front."""

import numpy as np

from deeplab_jax.scenes.canvas import Canvas, Scene
from deeplab_jax.scenes.objects import bus, car, cyclist, hood, motorcycle, motorcyclist, pavement, train, truck
from deeplab_jax.scenes.shapes import WHITE, band, cells, pick, rect
from deeplab_jax.scenes.surroundings import frontage, lawn, rails, road, sidewalk, sky, skyline


def draw_scene(rng: np.random.Generator, size: tuple[int, int] = (192, 384)) -> Scene:
    """A street as seen from a car.

    Args:
      rng: the scene is a function of its state.
      size: (height, width) in pixels; the objects scale with the height.
    """
    c = Canvas(rng, size)
    tram, parking, walk = rng.random() < 0.6, rng.random() < 0.5, rng.uniform(2.4, 3.4)
    kerb, far_kerb = rng.uniform(2.2, 2.8), -rng.uniform(5.0, 5.6)
    right, left = kerb + 2.3 * parking, far_kerb - 3.4 * tram  # where the pavements begin

    sky(c)
    lawn(c, rect(0, c.width - 1, c.horizon, c.height - 1), -30, 30)
    sidewalk(c, left - walk, left)
    sidewalk(c, right, right + walk)
    if tram:
        rails(c, left, far_kerb)
    if parking:
        bays = cells(np.arange(3.0, 40, 5.5), [kerb], 0.15, right - kerb)
        c.add("parking", band(kerb, right), (116, 116, 120), [(bays, WHITE)], c.ground)
    road(c, far_kerb, kerb)
    skyline(c)
    frontage(c, right + walk)
    frontage(c, left - walk)

    pavement(c, left - 0.35 * walk, near=9)
    pavement(c, right + 0.35 * walk, near=5.5)
    if tram:
        train(c, far_kerb - 1.75, rng.uniform(9, 16))
    if parking:
        for z in (rng.uniform(15, 18), rng.uniform(7, 9)):
            pick(rng, {car: 0.7, truck: 0.1, motorcycle: 0.2})(c, kerb + 1.15, z)
    oncoming = {car: 0.15, truck: 0.3, bus: 0.35, motorcyclist: 0.2}
    pick(rng, oncoming)(c, far_kerb + 1.7, rng.uniform(22, 30))
    pick(rng, oncoming)(c, far_kerb + 1.7, rng.uniform(9, 14))
    if rng.random() < 0.55:
        cyclist(c, kerb - 0.5, rng.uniform(5.5, 8))
    pick(rng, {car: 0.3, truck: 0.2, bus: 0.3, motorcyclist: 0.2})(c, rng.uniform(-0.5, 0), rng.uniform(8, 17))
    if rng.random() < 0.7:
        hood(c)
    return c.develop()
