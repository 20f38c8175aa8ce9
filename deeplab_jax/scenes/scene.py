"""Draw a full street scene, from the background to the foreground."""

import numpy as np

from deeplab_jax.scenes.objects import (
    draw_bus,
    draw_car,
    draw_cyclist,
    draw_hood,
    draw_motorcycle,
    draw_motorcyclist,
    draw_pavement_objects,
    draw_tram,
    draw_truck,
)
from deeplab_jax.scenes.painter import Painter, Scene
from deeplab_jax.scenes.shapes import WHITE, band, cells, pick, rect
from deeplab_jax.scenes.surroundings import (
    draw_frontage,
    draw_grass,
    draw_rail_track,
    draw_road,
    draw_sidewalk,
    draw_sky,
    draw_skyline,
)


def draw_scene(rng: np.random.Generator, size: tuple[int, int] = (192, 384)) -> Scene:
    """Draw a street as seen from a car.

    Args:
      rng: The random generator, whose state determines the scene.
      size: The (height, width) of the image in pixels. Objects scale with the height.
    """
    c = Painter(rng, size)
    tram, parking, walk = rng.random() < 0.6, rng.random() < 0.5, rng.uniform(2.4, 3.4)
    kerb, far_kerb = rng.uniform(2.2, 2.8), -rng.uniform(5.0, 5.6)
    right, left = kerb + 2.3 * parking, far_kerb - 3.4 * tram  # inner pavement edges

    draw_sky(c)
    draw_grass(c, rect(0, c.width - 1, c.horizon, c.height - 1), -30, 30)
    draw_sidewalk(c, left - walk, left)
    draw_sidewalk(c, right, right + walk)
    if tram:
        draw_rail_track(c, left, far_kerb)
    if parking:
        bays = cells(np.arange(3.0, 40, 5.5), [kerb], 0.15, right - kerb)
        c.paint("parking", band(kerb, right), (116, 116, 120), [(bays, WHITE)], c.project_ground)
    draw_road(c, far_kerb, kerb)
    draw_skyline(c)
    draw_frontage(c, right + walk)
    draw_frontage(c, left - walk)

    draw_pavement_objects(c, left - 0.35 * walk, near=9)
    draw_pavement_objects(c, right + 0.35 * walk, near=5.5)
    if tram:
        draw_tram(c, far_kerb - 1.75, rng.uniform(9, 16))
    if parking:
        for z in (rng.uniform(15, 18), rng.uniform(7, 9)):
            pick(rng, {draw_car: 0.7, draw_truck: 0.1, draw_motorcycle: 0.2})(c, kerb + 1.15, z)
    oncoming = {draw_car: 0.15, draw_truck: 0.3, draw_bus: 0.35, draw_motorcyclist: 0.2}
    pick(rng, oncoming)(c, far_kerb + 1.7, rng.uniform(22, 30))
    pick(rng, oncoming)(c, far_kerb + 1.7, rng.uniform(9, 14))
    if rng.random() < 0.55:
        draw_cyclist(c, kerb - 0.5, rng.uniform(5.5, 8))
    pick(rng, {draw_car: 0.3, draw_truck: 0.2, draw_bus: 0.3, draw_motorcyclist: 0.2})(
        c, rng.uniform(-0.5, 0), rng.uniform(8, 17)
    )
    if rng.random() < 0.7:
        draw_hood(c)
    return c.finish()
