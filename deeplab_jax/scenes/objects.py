"""Draw the objects in a street scene: street furniture, people, two-wheelers and vehicles."""

import dataclasses

import numpy as np

from deeplab_jax.labels import Color
from deeplab_jax.scenes.painter import Painter, Parts, Points, Projection
from deeplab_jax.scenes.shapes import (
    DARK,
    GLASS,
    HAIR,
    METAL,
    PAINT,
    RED,
    SKIN,
    STEEL,
    TROUSERS,
    WHITE,
    YELLOW,
    arc,
    bars,
    cells,
    hull,
    path,
    pick,
    pick_color,
    rect,
    shade,
)

# Objects on the pavement. The position (x, z) is in metres.


def draw_pavement_objects(c: Painter, x: float, near: float) -> None:
    """Draw a row of people, posts and parked two-wheelers on the pavement, from far to near.

    The row starts `near` metres ahead of the camera.
    """
    extra = pick(c.rng, {draw_litter_bin: 0.4, draw_sign_pair: 0.3, draw_motorcycle: 0.3})
    kinds = [
        draw_traffic_light,
        draw_traffic_sign,
        draw_street_lamp,
        draw_person,
        draw_person,
        draw_person,
        draw_bicycle,
        extra,
    ]
    places = near + np.cumsum(c.rng.uniform(0.8, 2.2, len(kinds)))
    for k, z in zip(c.rng.permutation(len(kinds)), places[::-1], strict=True):
        kinds[k](c, x + c.rng.uniform(-0.5, 0.5), z)


def draw_pole(c: Painter, outline: Points, on: Projection) -> None:
    """Draw a pole with the given outline, shaded on its right side."""
    color = pick_color(c.rng, METAL)
    c.paint("pole", outline, color, [(rect(0.03, 0.16, 0, 9), shade(color, 0.7))], on)


def draw_street_lamp(c: Painter, x: float, z: float) -> None:
    """Draw a street lamp with its arm over the road."""
    on = c.facing_plane(x, z, -np.sign(x), c.rng.uniform(0.9, 1.15))
    draw_pole(c, path("-.15,0 .15,0 .14,4.6 1.6,4.9 1.6,5.15 -.14,4.85"), on)


def draw_traffic_light(c: Painter, x: float, z: float) -> None:
    """Draw a traffic light on its pole."""
    on, lit = c.facing_plane(x, z, scale=c.rng.uniform(0.9, 1.1)), c.rng.integers(3)
    draw_pole(c, rect(-0.15, 0.15, 0, 2.8), on)
    lamps = ((3.85, (214, 52, 40)), (3.39, (236, 176, 44)), (2.93, (64, 190, 96)))
    parts = [(arc(0, y, 0.2), shade(color, 1 if k == lit else 0.38)) for k, (y, color) in enumerate(lamps)]
    c.paint("traffic light", rect(-0.36, 0.36, 2.6, 4.15), DARK, parts, on)


def draw_traffic_sign(c: Painter, x: float, z: float) -> None:
    """Draw a traffic sign on its pole."""
    draw_pole(c, rect(-0.15, 0.15, 0, 2.6), c.facing_plane(x, z))
    draw_sign_plate(c, x, 2.6, z)


def draw_sign_pair(c: Painter, x: float, z: float) -> None:
    """Draw two traffic signs on a double post. Its class, `polegroup`, is ignored in evaluation."""
    c.paint("polegroup", rect(-0.3, 0.3, 0, 2.4), STEEL, [(rect(-0.12, 0.12, 0, 2.4), DARK)], c.facing_plane(x, z))
    draw_sign_plate(c, x, 1.7, z)
    draw_sign_plate(c, x, 2.7, z)


def draw_sign_plate(c: Painter, x: float, y: float, z: float) -> None:
    """Draw a traffic sign plate in one of six designs, centred at height y."""
    blue, disc, dash = (36, 84, 172), arc(0, 0, 0.5, n=14), rect(-0.28, 0.28, -0.09, 0.09)
    up, diamond = path("-.55,-.5 .55,-.5 0,.53"), path(".58,0 0,.58 -.58,0 0,-.58")
    kinds: list[tuple[Points, Color, Parts]] = [
        (disc, RED, [(0.68 * disc, WHITE), (0.8 * dash, DARK)]),
        (disc, RED, [(dash, WHITE)]),
        (disc, blue, [(0.4 * up, WHITE)]),
        (up, RED, [(0.6 * up - (0, 0.06), WHITE)]),
        (rect(-0.5, 0.5, -0.5, 0.5), blue, [(dash, WHITE), (dash[:, ::-1], WHITE)]),
        (diamond, WHITE, [(0.75 * diamond, YELLOW)]),
    ]
    outline, color, parts = kinds[c.rng.integers(len(kinds))]
    c.paint("traffic sign", outline, color, parts, lambda p: c.project(x + p[..., 0], y + p[..., 1], z))


def draw_litter_bin(c: Painter, x: float, z: float) -> None:
    """Draw a litter bin. Its class, `static`, is ignored in evaluation."""
    color = pick_color(c.rng, PAINT)
    rim = (rect(-0.4, 0.4, 0.85, 1), shade(color, 0.6))
    c.paint("static", path("-.3,0 .3,0 .38,1 -.38,1"), color, [rim], c.facing_plane(x, z))


def draw_person(c: Painter, x: float, z: float) -> None:
    """Draw a standing or walking person."""
    rng, legs = c.rng, path(".19,.9 .21,0 .04,0 0,.72 -.04,0 -.21,0 -.19,.9")
    spread = 1 + rng.uniform(0, 0.9) * (1 - legs[:, 1:]) * (1, 0)  # moves the feet apart, as in walking
    arms, back = path(".07,1.48 .26,1.43 .34,.84 .22,.84"), path("-.22,.84 -.34,.84 -.26,1.43 -.07,1.48")
    outline = np.concatenate([arms, legs * spread, back, arc(0, 1.62, 0.15, 240, -60)])
    skin, shirt = pick_color(rng, SKIN), pick_color(rng, PAINT)
    hair, trousers = pick_color(rng, HAIR), pick_color(rng, TROUSERS)
    parts = [(rect(-1, 1, 0, 0.95), trousers), (rect(-1, 1, 0, 0.08), DARK), (rect(-0.4, 0.4, 0.82, 0.92), skin)]
    parts += [(rect(-0.19, 0.19, 0.8, 0.95), trousers), (cells([-0.2, 0.17], [0.9], 0.03, 0.4), shade(shirt, 0.7))]
    parts += [(rect(-0.2, 0.2, 1.46, 1.8), skin), (rect(-0.2, 0.2, 1.66, 1.8), hair)]
    c.paint("person", outline, shirt, parts, c.facing_plane(x, z, scale=rng.uniform(0.92, 1.1)))


# Two-wheelers, seen from the side.


def choose_side_view(c: Painter, x: float, z: float) -> Projection:
    """Return the projection for a side view at a slight random angle, with the object facing left or right."""
    return c.facing_plane(x, z, c.rng.uniform(0.8, 0.95) * c.rng.choice((-1, 1)), 1.1)


def draw_bicycle(c: Painter, x: float, z: float, on: Projection | None = None) -> None:
    """Draw a bicycle. The background is visible between the spokes."""
    saddle, handlebar = path("-.32,.82 -.4,1 -.08,1 -.12,.82 .34,.85"), path(".26,1 .3,1.12 .52,1.12 .5,.9")
    crank, hubs = path(".06,.2 -.1,.2"), path("-.55,.36 .55,.36")[:, None]
    outline = np.concatenate([arc(-0.55, 0.36, 0.38, -20, -280), saddle, handlebar, arc(0.55, 0.36, 0.38, 100, -160), crank])
    rim, spokes = arc(0, 0, 0.33, 0, 360, 17), arc(0, 0, 0.33, 0, 300, 6)
    starts, stops = "-.55,.36 -.03,.3 -.2,.82 -.03,.3 -.55,.36 .55,.36", "-.03,.3 -.22,.86 .42,.85 .42,.85 -.2,.82 .38,1.08"
    parts = [(bars(hubs + 0 * spokes, hubs + spokes, 0.025), STEEL), (bars(hubs + rim[:-1], hubs + rim[1:], 0.09), DARK)]
    parts += [(bars(path(starts), path(stops), 0.085), pick_color(c.rng, PAINT))]
    parts += [(bars(path("-.4,.95 .28,1.07"), path("-.06,.95 .54,1.07"), 0.1), DARK)]
    c.paint("bicycle", outline, None, parts, on or choose_side_view(c, x, z))


def draw_motorcycle(c: Painter, x: float, z: float, on: Projection | None = None) -> None:
    """Draw a motorcycle with wide tyres, an engine and a tank."""
    paint, top = pick_color(c.rng, PAINT), path("-.95,.86 -.5,.92 0,.92 .3,1.05 .36,1.2 .56,1.2 .62,.95")
    low = path(".2,.18 -.25,.18")
    outline = np.concatenate([arc(-0.68, 0.34, 0.36, -40, -250), top, arc(0.72, 0.34, 0.36, 100, -150), low])
    parts = [(arc(u, 0.34, r), color) for u in (-0.68, 0.72) for r, color in ((0.37, DARK), (0.2, STEEL), (0.08, DARK))]
    parts += [(path(".67,.32 .77,.36 .51,1.17 .41,1.13"), STEEL), (rect(-0.3, 0.3, 0.2, 0.62), (86, 88, 92))]
    parts += [(path(".05,.2 .05,.3 -.8,.39 -.8,.29"), WHITE), (path("-1,.9 -.3,.8 -.3,.66 -.85,.72"), paint)]
    parts += [(path("-.12,.7 -.05,.95 .32,1.04 .42,.72"), paint), (rect(-0.6, -0.08, 0.8, 0.94), DARK)]
    parts += [(arc(0.6, 0.98, 0.1), (250, 240, 190)), (rect(0.34, 0.58, 1.12, 1.2), DARK)]
    c.paint("motorcycle", outline, (52, 52, 56), parts, on or choose_side_view(c, x, z))


def draw_rider(c: Painter, on: Projection) -> None:
    """Draw a rider leaning forward, with a helmet and a bright band."""
    rng, back = c.rng, path("-.38,.86 -.36,1.15 -.16,1.52 0,1.56")
    front = path(".2,1.48 .52,1.16 .5,1.02 .2,1.2 .06,1 .32,.82 .2,.26 0,.26 .08,.7 -.2,.8")
    helmet = pick_color(rng, (WHITE, YELLOW, RED, (40, 60, 150)))
    parts = [(rect(-1, 1, 0, 0.98), pick_color(rng, TROUSERS)), (rect(-1, 1, 0, 0.36), DARK), (rect(0.42, 1, 1, 1.12), DARK)]
    parts += [(path("-.5,1.1 .2,1.26 .2,1.36 -.5,1.22"), (214, 232, 60)), (rect(0, 0.4, 1.54, 1.72), pick_color(rng, SKIN))]
    parts += [(rect(-0.2, 0.4, 1.7, 2), helmet), (rect(-0.2, 0.06, 1.6, 1.8), helmet)]
    c.paint("rider", np.concatenate([back, arc(0.1, 1.72, 0.18, 230, -60), front]), pick_color(rng, PAINT), parts, on)


def draw_cyclist(c: Painter, x: float, z: float) -> None:
    """Draw a rider on a bicycle."""
    on = choose_side_view(c, x, z)
    draw_bicycle(c, x, z, on)
    draw_rider(c, on)


def draw_motorcyclist(c: Painter, x: float, z: float) -> None:
    """Draw a rider on a motorcycle at (x, 0.75 * z)."""
    on = choose_side_view(c, x, 0.75 * z)
    draw_motorcycle(c, x, z, on)
    draw_rider(c, on)


# Vehicles, seen from the front or from behind. (x, z) is the middle of the end that faces the camera.


@dataclasses.dataclass(slots=True)
class Body:
    """A vehicle body, extruded from a side profile.

    All lengths are in metres. The face is the end of the vehicle that points at the camera.

    Attributes:
      label: The Cityscapes class name.
      width: The body width.
      profile: The side outline [k, 2], in (distance behind the face, height) coordinates.
      color: The body colour.
      face: The details on the face, in (right, up) coordinates.
      flank: The details on the side, in (distance behind the face, up) coordinates. They are drawn only if the side is visible.
      taper: The fraction of the width lost per metre above the waist, which is 0.9 m high. Details are narrowed as well.
    """

    label: str
    width: float
    profile: Points
    color: Color
    face: Parts
    flank: Parts
    taper: float = 0

    def draw(self, c: Painter, x: float, z: float) -> None:
        """Draw the body with its face at (x, z), at a random scale from 0.94 to 1.06."""
        scale, half = c.rng.uniform(0.94, 1.06), self.width / 2

        def at(u: Points | float, p: Points, depth: Points | float) -> Points:
            narrowed = u * (1 - self.taper * np.clip(p[..., 1] - 0.9, 0, 1))
            return c.project(x + scale * narrowed, scale * p[..., 1], z + scale * depth)

        sides = [at(u, self.profile, self.profile[:, 0]) for u in (-half, half)]
        front = rect(-half, half, 0, self.profile[1, 1])
        parts = [(at(p[..., 0], p, 0.0), color) for p, color in [(front, self.color), *self.face]]
        if abs(x) > scale * half:
            flank = [(self.profile, shade(self.color, 0.8)), *self.flank]
            parts = [(at(-np.sign(x) * half, p, p[..., 0]), color) for p, color in flank] + parts
        c.paint(self.label, hull(np.concatenate(sides)), shade(self.color, 1.15), parts)


def make_wheels(*places: float, radius: float) -> Parts:
    """Return the flank parts for wheels at the given distances behind the face."""
    return [(arc(z, radius, r), color) for z in places for r, color in ((radius, DARK), (radius / 2, STEEL))]


def make_lights(c: Painter, u: float, y: float, size: float) -> Parts:
    """Return the face parts for a pair of lights, randomly either red tail lights or pale headlights."""
    color = (214, 30, 30) if c.rng.random() < 0.5 else (252, 244, 206)
    return [(cells([-u - size, u - size], [y - 0.6 * size], 2 * size, 1.2 * size), color)]


def draw_car(c: Painter, x: float, z: float) -> None:
    """Draw a car with a low glass cabin on a wider body."""
    paint, glass = pick_color(c.rng, PAINT), shade(GLASS, 0.7)
    face = [(path("-.9,.98 .9,.98 .85,1.65 -.85,1.65"), glass), (rect(-1, 1, 0.25, 0.42), shade(paint, 0.55))]
    face += [(rect(-1, 1, 0, 0.25), DARK), (rect(-0.26, 0.26, 0.5, 0.66), WHITE), *make_lights(c, 0.72, 0.76, 0.16)]
    flank = [(rect(0, 5, 0, 0.22), DARK), *make_wheels(0.8, 3.4, radius=0.34)]
    flank += [(path(".5,1 .85,1.47 1.5,1.47 1.5,1"), glass), (path("1.62,1 1.62,1.47 2.5,1.47 3,1"), glass)]
    profile = path("0,0 0,.95 .3,1 .7,1.55 2.6,1.55 3.3,1 4.2,.85 4.3,0")
    Body("car", 1.8, profile, paint, face, flank, taper=0.35).draw(c, x, z)


def draw_truck(c: Painter, x: float, z: float) -> None:
    """Draw a lorry: a tall ribbed box with doors, open space underneath, and a cab at the far end."""
    paint = pick_color(c.rng, PAINT)
    edge, profile = shade(paint, 0.6), path("0,0 0,3.45 6,3.45 6.1,2.7 7.8,2.6 8,0")
    frame = (rect(-2, 2, 0.9, 1.05), rect(-2, 2, 3.3, 4), rect(-0.05, 0.05, 0.9, 4))
    face = [(rect(-2, 2, 0, 0.9), DARK), *((p, edge) for p in frame), *make_lights(c, 1.0, 0.5, 0.13)]
    face += [(cells([-0.5, 0.4], [1.05], 0.07, 2.2), WHITE), (cells(np.arange(-1.25, 1, 0.5), [0.62], 0.25, 0.18), RED)]
    flank = [(rect(0, 6, 0, 0.9), DARK), (cells(np.arange(0.2, 6, 0.7), [0.9], 0.12, 3), edge), (rect(6, 8, 0, 4), edge)]
    flank += [(rect(6.5, 7.8, 1.5, 2.4), GLASS), *make_wheels(1, 2.1, 6.9, radius=0.48)]
    Body("truck", 2.5, profile, paint, face, flank).draw(c, x, z)


def draw_bus(c: Painter, x: float, z: float) -> None:
    """Draw a bus with windows all around, a lit destination sign above them and a stripe below."""
    paint, stripe = pick_color(c.rng, PAINT), pick_color(c.rng, (YELLOW, WHITE, (60, 160, 190)))
    face = [(rect(-1.12, 1.12, 1.35, 2.5), GLASS), (path("-.9,1.4 -.3,1.4 .3,2.45 -.3,2.45"), shade(GLASS, 1.3))]
    face += [(rect(-0.9, 0.9, 2.6, 2.96), DARK), (rect(-0.6, 0.6, 2.7, 2.86), YELLOW)]
    skirt = [(rect(-2, 12, 0.85, 1.12), stripe), (rect(-2, 12, 0, 0.3), DARK)]
    flank = [*skirt, (cells(np.arange(0.3, 10, 1.5), [1.35], 1.35, 1.15), GLASS), *make_wheels(2.2, 8.5, radius=0.46)]
    face += [*skirt, *make_lights(c, 0.95, 0.6, 0.17)]
    Body("bus", 2.5, path("0,0 0,3.1 11,3.1 11.2,0"), paint, face, flank).draw(c, x, z)


def draw_tram(c: Painter, x: float, z: float) -> None:
    """Draw a long cream tram with a coloured skirt and a roof pantograph. Its class is `train`."""
    skirt, cream = pick_color(c.rng, PAINT), pick_color(c.rng, ((236, 226, 200), (226, 228, 230)))
    face = [(rect(-2, 2, 0, 1.25), skirt), (path("-1,1.5 1,1.5 .8,2.75 -.8,2.75"), shade(GLASS, 0.75))]
    face += [(rect(-2, 2, 0, 0.25), DARK), (rect(-0.06, 0.06, 0.3, 1.2), cream), *make_lights(c, 0.9, 0.8, 0.15)]
    flank = [(rect(0, 24, 0, 1.25), shade(skirt, 0.8)), (cells(np.arange(1.2, 23, 1.7), [1.6], 1.1, 1.0), GLASS)]
    flank += [(cells([3.0, 9.8, 16.6], [0.3], 1.2, 2.3), shade(skirt, 0.6)), (rect(0, 24, 3.05, 3.3), STEEL)]
    profile = path("0,.1 0,2.8 .8,3.3 2.5,3.3 3.2,4 4.6,4 5.3,3.3 24,3.3 24,.1")
    Body("train", 2.6, profile, cream, face, flank).draw(c, x, z)


def draw_hood(c: Painter) -> None:
    """Draw the bonnet of the camera car. Its class, `ego vehicle`, is ignored in evaluation."""
    w, rise = c.width, c.rng.uniform(0.05, 0.1) * c.height
    color = pick_color(c.rng, ((40, 42, 48), (90, 94, 100), (120, 30, 30)))
    across, below = np.linspace(-1, 1, 15), np.array((0, rise))
    outline = np.stack([w / 2 + 0.44 * w * across, c.height - 1 - rise * np.sqrt(1 - across**4)], -1)
    shine = np.concatenate([outline + 0.15 * below, outline[::-1] + 0.35 * below])
    c.paint("ego vehicle", outline, color, [(shine, shade(color, 1.5))])
