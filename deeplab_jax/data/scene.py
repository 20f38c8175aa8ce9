"""Draws street scenes with exact labels.

Everything is a polygon given in metres and projected by a pinhole camera: x to the right of the camera, y above the ground,
z ahead. One rasterised mask of the polygon cuts image, label and instance alike, so they agree in every pixel, and drawing
the polygons again in the same order gives the label back.

The camera stands at x = 0: what is further from the middle of the street never hides what is nearer to it. Scenes are
therefore painted lane by lane from the outside in, and from far to near within a lane.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from PIL import Image, ImageDraw

from deeplab_jax.labels import CITYSCAPES, Color

IGNORED = {"ego vehicle": 1, "static": 4, "parking": 9, "rail track": 10, "polegroup": 18}
IDS = dict(zip(CITYSCAPES.names, CITYSCAPES.ids, strict=True)) | IGNORED
THINGS = ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")

T = TypeVar("T")
Points = np.ndarray  # float [..., k, 2]: one polygon, or many with as many corners
Parts = list[tuple[Points, Color]]
Mapping = Callable[[Points], Points]  # from some plane, in metres, to pixels
Object = tuple[str, list[list[int]]]

# Bodies, clothes and walls draw from shared colours: shape and pattern have to tell the classes apart, not colour.
_PAINT = ((176, 40, 38), (38, 74, 140), (228, 228, 224), (52, 56, 62), (150, 154, 160), (222, 170, 46), (44, 112, 78))
_PLASTER = ((196, 170, 138), (170, 120, 98), (150, 150, 152), (206, 196, 172), (140, 92, 80), (182, 186, 160))
_BRICK = ((168, 92, 74), (150, 144, 136), (190, 160, 124))
_PICKET = ((232, 228, 216), (150, 108, 70), (70, 78, 84), (176, 190, 196))
_METAL = ((126, 130, 132), (92, 98, 100), (84, 96, 88))
_LEAF, _GRASS, _BARK = ((58, 98, 48), (72, 108, 44), (50, 88, 58)), ((170, 160, 84), (150, 152, 78)), ((96, 72, 52),)
_SKIN, _HAIR = ((236, 196, 164), (198, 146, 108), (128, 84, 58)), ((40, 30, 26), (110, 76, 46), (160, 150, 140))
_TROUSERS = ((44, 52, 78), (60, 58, 56), (120, 106, 86))
_GLASS, _DARK, _STEEL = (62, 82, 98), (30, 30, 32), (150, 152, 156)
_WHITE, _RED, _YELLOW = (236, 236, 232), (206, 38, 38), (240, 190, 50)
_GRAIN = {"sky": 1.5, "road": 5, "terrain": 13, "vegetation": 12, "building": 5, "wall": 7}  # noise in grey levels; others: 3.5


@dataclasses.dataclass(frozen=True, slots=True)
class Scene:
    """A picture and its annotation, as Cityscapes has them.

    Attributes:
      image: uint8 [h, w, 3] RGB.
      label_ids: uint8 [h, w], Cityscapes ids.
      instance_ids: uint16 [h, w]: the id, or 1000 id + k for the k-th object of a class that is counted (THINGS).
      objects: (label, [[x, y], ...]) in the order they were painted; `label_ids` is what painting them gives.
    """

    image: np.ndarray
    label_ids: np.ndarray
    instance_ids: np.ndarray
    objects: tuple[Object, ...]


class Canvas:
    """A camera, and what it has seen so far.

    Args:
      rng: every choice of the scene comes from it.
      size: (height, width) in pixels.
    """

    def __init__(self, rng: np.random.Generator, size: tuple[int, int]) -> None:
        self.rng = rng
        self.height, self.width = size
        self.focal = 1.15 * self.height
        self.eye = rng.uniform(1.55, 1.9)
        self.horizon = self.height * rng.uniform(0.38, 0.45)
        self.centre = self.width * rng.uniform(0.45, 0.55)
        self.bend = rng.uniform(-0.002, 0.002)  # the street's sideways drift, in metres per square metre ahead
        self.mirror = rng.choice((-1, 1))
        self.image = Image.new("RGB", (self.width, self.height))
        self.labels = Image.new("L", self.image.size)
        self.instances = Image.new("I", self.image.size)
        self.objects: list[Object] = []

    def at(self, x: Points | float, y: Points | float, z: Points | float) -> Points:
        """Pixels [..., 2] of points in metres."""
        scale = self.focal / z
        right = self.centre + self.mirror * (x + self.bend * z * z) * scale
        down = self.horizon + (self.eye - y) * scale
        pixels = np.empty((*np.broadcast(right, down).shape, 2))
        pixels[..., 0], pixels[..., 1] = right, down
        return pixels

    def ground(self, p: Points) -> Points:
        """Pixels of points (z, x) that lie flat."""
        return self.at(p[..., 1], 0.0, p[..., 0])

    def facade(self, x: float) -> Mapping:
        """The upright plane along the street at x, whose points are (z, y)."""
        return lambda p: self.at(x, p[..., 1], p[..., 0])

    def board(self, x: float, z: float, stretch: float = 1.0, scale: float = 1.0) -> Mapping:
        """The upright plane that faces the camera at (x, z), whose points are (right, up); a negative stretch mirrors it."""
        return lambda p: self.at(x + stretch * scale * p[..., 0], scale * p[..., 1], z)

    def add(self, label: str, outline: Points, fill: Color | None, parts: Parts, on: Mapping | None = None) -> None:
        """Paints an object over what is there.

        Args:
          label: its Cityscapes name.
          outline: [k, 2]; rounded to whole pixels.
          fill: its colour; None leaves what is behind it visible, as through a fence.
          parts: coloured polygons upon it; what leaves the outline is cut off.
          on: the plane that outline and parts are drawn on; None: they are in pixels.
        """
        corners = np.rint(on(outline) if on else outline).astype(int)
        mask = Image.new("1", self.image.size)
        ImageDraw.Draw(mask).polygon(corners.ravel().tolist(), fill=1)
        box = mask.getbbox()
        if box is None:
            return
        mask = mask.crop(box)
        patch = self.image.crop(box) if fill is None else Image.new("RGB", mask.size, fill)
        pen = ImageDraw.Draw(patch)
        for shape, color in parts:
            shape = np.rint((on(shape) if on else shape) - box[:2]).astype(int)
            for polygon in shape.reshape(-1, 2 * shape.shape[-2]).tolist():
                pen.polygon(polygon, fill=color)
        count = sum(name == label for name, _ in self.objects)
        self.image.paste(patch, box, mask)
        self.labels.paste(IDS[label], box, mask)
        self.instances.paste(1000 * IDS[label] + count if label in THINGS else IDS[label], box, mask)
        self.objects.append((label, corners.tolist()))

    def develop(self) -> Scene:
        """The scene under its light: a soft shadow, brightness, colour temperature and the grain of each material."""
        rng, label_ids = self.rng, np.asarray(self.labels)
        y, x = np.linspace(-1, 1, self.height, dtype=np.float32)[:, None], np.linspace(-1, 1, self.width, dtype=np.float32)
        angle, edge, depth, bright, warmth = rng.uniform((0, -0.3, 0, 0.8, -0.07), (2 * np.pi, 0.9, 0.4, 1.12, 0.07)).tolist()
        away = edge - x * math.cos(angle) - y * math.sin(angle)
        light = bright * np.where(label_ids == IDS["sky"], 1, 1 - depth * np.clip(0.5 - 4 * away, 0, 1))
        grain = np.full(256, 3.5, np.float32)
        grain[[IDS[name] for name in _GRAIN]] = list(_GRAIN.values())
        noise = grain[label_ids] * rng.standard_normal(label_ids.shape, np.float32)
        channels = zip(self.image.split(), (1 + warmth, 1, 1 - warmth), strict=True)
        image = np.stack([np.clip(np.asarray(v) * (gain * light) + noise, 0, 255).astype(np.uint8) for v, gain in channels], -1)
        return Scene(image, label_ids, np.asarray(self.instances).astype(np.uint16), tuple(self.objects))


def draw_scene(rng: np.random.Generator, size: tuple[int, int] = (256, 512)) -> Scene:
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
        c.add("parking", band(kerb, right), (116, 116, 120), [(bays, _WHITE)], c.ground)
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


# Choices.


def pick(rng: np.random.Generator, weights: dict[T, float]) -> T:
    """One of the keys, as likely as its weight says."""
    return list(weights)[rng.choice(len(weights), p=list(weights.values()))]


def some(rng: np.random.Generator, colors: Sequence[Color]) -> Color:
    """One of the colours, a little brighter or darker, and a little off."""
    which, bright, *tint = rng.random(5).tolist()
    r, g, b = (int(v + 10 * t - 5) for v, t in zip(colors[int(which * len(colors))], tint, strict=True))
    return shade((r, g, b), 0.86 + 0.28 * bright)


def shade(color: Color, factor: float) -> Color:
    """The colour, darker or brighter."""
    r, g, b = (min(255, max(0, int(v * factor))) for v in color)
    return r, g, b


# Shapes. Those of many polygons carry them in the leading axis.


@functools.cache
def path(points: str) -> Points:
    """[k, 2]: "x,y x,y ...", as SVG writes it."""
    return np.array([p.split(",") for p in points.split()], float)


def rect(x0: float, x1: float, y0: float, y1: float) -> Points:
    """[4, 2]: a rectangle."""
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])


def band(low: float, high: float, near: float = 2.0, far: float = 90.0) -> Points:
    """[20, 2]: a strip along the street, (z, low to high); of many corners, because the street bends."""
    z = near * (far / near) ** np.linspace(0, 1, 10)
    return np.array([(*z, *z[::-1]), (low,) * 10 + (high,) * 10]).T


def cells(us: Sequence[float] | Points, vs: Sequence[float] | Points, du: float, dv: float) -> Points:
    """[len(us) * len(vs), 4, 2]: rectangles of du x dv, their lower left corners on a grid."""
    grid = np.empty((len(vs), len(us), 1, 2))
    grid[..., 0], grid[..., 1] = np.asarray(us)[:, None], np.asarray(vs)[:, None, None]
    return grid.reshape(-1, 1, 2) + rect(0, du, 0, dv)


def arc(x: float, y: float, radius: float, start: float = 0, stop: float = 330, n: int = 12) -> Points:
    """[n, 2]: points on a circle, angles in degrees; by default a whole disc."""
    turn = np.arange(n) * (np.radians(stop - start) / (n - 1)) + np.radians(start)
    return np.array([x + radius * np.cos(turn), y + radius * np.sin(turn)]).T


def bars(starts: Points, stops: Points, width: float) -> Points:
    """[n, 4, 2]: straight lines of some width."""
    along = (stops - starts) / np.linalg.norm(stops - starts, axis=-1, keepdims=True)
    across = width / 2 * along[..., ::-1] * (-1, 1)
    return np.stack([starts - across, stops - across, stops + across, starts + across], -2)


def blob(rng: np.random.Generator, middle: Points, rx: float, ry: float) -> Points:
    """[18, 2]: a bumpy ellipse."""
    return middle + arc(0, 0, 1, 0, 340, 18) * rng.uniform(0.82, 1.12, (18, 1)) * (rx, ry)


def hull(points: Points) -> Points:
    """The convex hull of points [n, 2], in order around it."""

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


# Sky and ground.


def sky(c: Canvas) -> None:
    """A gradient and some clouds, over the whole picture."""
    rng, w, h = c.rng, c.width, c.height
    top = np.array(some(rng, ((88, 142, 206), (120, 160, 200), (150, 164, 180))))
    low = 0.35 * top + 0.65 * np.array((232, 232, 228))
    ramp = np.clip(np.arange(h) / c.horizon, 0, 1)[:, None, None]
    c.image.paste(Image.fromarray((top + ramp * (low - top)).astype(np.uint8)).resize((w, h), Image.Resampling.NEAREST))
    clouds = []
    for _ in range(rng.integers(0, 5)):
        x, y, s = rng.uniform(0.2, 0.8) * w, rng.uniform(0.02, 0.75) * c.horizon, rng.uniform(0.03, 0.07) * w
        puffs = [blob(rng, np.array((x + d * s, y)), s, 0.28 * s * rng.uniform(0.7, 1.3)) for d in (-0.9, 0, 0.8)]
        clouds += [(puff, (240, 241, 242)) for puff in puffs]
    c.add("sky", rect(0, w - 1, 0, h - 1), None, clouds)


def lawn(c: Canvas, outline: Points, x0: float, x1: float) -> None:
    """Dry grass within an outline in pixels, its tufts strewn from x0 to x1."""
    grass, z = some(c.rng, _GRASS), 1 / c.rng.uniform(1 / 40, 1 / 3, (180, 1))
    tufts = c.at(c.rng.uniform(x0, x1, (180, 1)) + np.array((-0.05, 0.05, 0)), np.array((0, 0, 0.26)), z)
    c.add("terrain", outline, grass, [(tufts[::2], shade(grass, 0.72)), (tufts[1::2], shade(grass, 1.22))])


def sidewalk(c: Canvas, x0: float, x1: float) -> None:
    """Slabs between kerb stones, often with a strip of grass along the street."""
    slabs, side, kerb = some(c.rng, ((168, 160, 152),)), np.sign(x0), min(x0, x1, key=abs)
    seams = [cells(np.arange(2.0, 40, 1.2), [x0], 0.07, x1 - x0), *(band(x, x + 0.04) for x in np.linspace(x0, x1, 4)[1:3])]
    edges = [(band(x - 0.1, x + 0.1), shade(slabs, 1.22)) for x in (x0, x1)]
    c.add("sidewalk", band(x0, x1), slabs, [*((seam, shade(slabs, 0.8)) for seam in seams), *edges], c.ground)
    if c.rng.random() < 0.55:
        near, far = kerb + 0.15 * side, kerb + c.rng.uniform(0.8, 1.1) * side
        lawn(c, c.ground(band(near, far)), min(near, far), max(near, far))


def rails(c: Canvas, x0: float, x1: float) -> None:
    """A tram's bed: `rail track`, which is not evaluated."""
    parts = [(cells(np.arange(2.0, 60, 1.1), [x1 - 3.0], 0.35, 2.5), (92, 76, 64))]
    parts += [(band(x, x + 0.12), _STEEL) for x in (x1 - 2.5, x1 - 1.0)]
    c.add("rail track", band(x0, x1), (132, 124, 114), parts, c.ground)


def road(c: Canvas, x0: float, x1: float) -> None:
    """Asphalt with a dashed middle, solid edges and sometimes a crossing."""
    dashes = cells(np.arange(c.rng.uniform(2, 5), 70, 5), [x0 + 3.33], 2.2, 0.14)
    lines = [dashes, band(x0 + 0.25, x0 + 0.39), band(x1 - 0.4, x1 - 0.26)]
    if c.rng.random() < 0.35:
        lines.append(cells([c.rng.uniform(9, 20)], np.arange(x0 + 0.5, x1 - 0.6, 0.9), 2.5, 0.45))
    c.add("road", band(x0, x1), some(c.rng, ((92, 92, 96),)), [(line, (228, 226, 214)) for line in lines], c.ground)


# What stands beside the street.


def skyline(c: Canvas) -> None:
    """Distant houses and trees, so that the street does not end in the sky."""
    rng, scale = c.rng, c.focal / 80
    for x in rng.uniform(-45, 45, 7):
        if rng.random() < 0.45:
            roof = rng.uniform(6, 15)
            windows = cells(np.arange(-5, 5, 2.5), np.arange(1, roof - 1.5, 3), 1.2, 1.6)
            c.add("building", rect(-6, 6, 0, roof), some(rng, _PLASTER), [(windows, shade(_GLASS, 1.2))], c.board(x, 85))
        else:
            foliage(c, blob(rng, c.at(x, 3, 80), 9 * scale, rng.uniform(4, 6) * scale), leaves=30)


def frontage(c: Canvas, x: float) -> None:
    """What lines one side of the street, from far to near."""
    edges = np.cumsum([c.rng.uniform(2.5, 3.5), *c.rng.uniform((5, 7, 9, 12, 15), (8, 12, 14, 18, 25))])
    for near, far in zip(edges[-2::-1], edges[:0:-1], strict=True):
        pick(c.rng, {building: 0.3, fenced_park: 0.28, walled_park: 0.28, park: 0.14})(c, x, near, far)


def building(c: Canvas, x: float, near: float, far: float) -> None:
    """A house front along the street, and the gable that looks towards the camera."""
    rng, on, side = c.rng, c.facade(x), np.sign(x)
    floors = 1 + 3.2 * np.arange(rng.integers(2, 6))
    roof, plaster, glass = floors[-1] + 2.8, some(rng, _PLASTER), shade(_GLASS, rng.uniform(0.7, 1.3))
    pitch, width, tall = rng.uniform(1.9, 2.8), rng.uniform(0.9, 1.3), rng.uniform(1.4, 1.9)
    places = np.arange(near + 0.6, far - width, pitch)
    gable = cells(x + side * np.arange(1.2, 9, 2.6) - 0.5, floors, 1.0, tall)
    parts = [(c.board(0, near)(gable), glass), (on(band(0, roof, near, far)), plaster)]
    trim = [cells(places - 0.12, floors - 0.12, width + 0.24, tall + 0.24)]
    trim += [band(y - 1, y - 0.8, near, far) for y in floors[1:]]
    parts += [(on(p), shade(plaster, 1.3)) for p in trim]
    parts += [(on(cells(places, floors, width, tall)), glass), (on(band(roof - 0.5, roof, near, far)), shade(plaster, 0.6))]
    faces = np.concatenate([on(band(0, roof, near, far)), c.at(x + side * 9, np.array((0, roof)), near)])
    c.add("building", hull(faces), shade(plaster, 0.78), parts)


def fenced_park(c: Canvas, x: float, near: float, far: float) -> None:
    """Trees and bushes on grass behind a picket fence."""
    park(c, x, near, far)
    top, color = c.rng.uniform(1.2, 1.6), some(c.rng, _PICKET)
    pickets = (cells(np.arange(near, far - 0.15, 0.32), [0.05], 0.17, top - 0.1), color)
    beams = [(band(y, y + 0.14, near, far), shade(color, 0.8)) for y in (0.3, top - 0.4)]
    c.add("fence", band(0, top, near, far), None, [*beams, pickets], c.facade(x))


def walled_park(c: Canvas, x: float, near: float, far: float) -> None:
    """Trees behind a brick wall."""
    park(c, x, near, far)
    top, color = c.rng.uniform(1.5, 2.2), some(c.rng, _BRICK)
    rows = np.arange(0, top, 0.36)
    joints = [cells(np.arange(near + 0.45 * k, far - 0.1, 0.9), rows[k::2], 0.07, 0.36) for k in (0, 1)]
    parts = [(p, shade(color, 1.35)) for p in (cells([near], rows, far - near, 0.06), *joints)]
    c.add("wall", band(0, top, near, far), color, [*parts, (band(top - 0.16, top, near, far), shade(color, 0.6))], c.facade(x))


def park(c: Canvas, x: float, near: float, far: float) -> None:
    """Trees and bushes beyond x."""
    rng, side = c.rng, np.sign(x)
    for z in np.sort(rng.uniform(near, far, rng.integers(1, 3)))[::-1]:
        tree(c, x + side * rng.uniform(2.5, 7), z + 2)
    if rng.random() < 0.5:
        z = rng.uniform(near, far) + 1
        foliage(c, blob(rng, c.at(x + side * 2.5, 0.7, z), 1.8 * c.focal / z, 1.1 * c.focal / z))


def tree(c: Canvas, x: float, z: float) -> None:
    """A trunk and a crown; the trunk is vegetation, as in Cityscapes."""
    top, bark, (rx, ry) = c.rng.uniform(3.6, 6.0), some(c.rng, _BARK), c.rng.uniform(1.5, 2.3, 2) * c.focal / z
    c.add("vegetation", rect(-0.22, 0.22, 0, top), bark, [(rect(0.02, 0.3, 0, top), shade(bark, 0.7))], c.board(x, z))
    foliage(c, blob(c.rng, c.at(x, top, z), rx, ry))


def foliage(c: Canvas, outline: Points, leaves: int = 64) -> None:
    """Leaves within an outline in pixels."""
    green, low, high = some(c.rng, _LEAF), outline.min(0), outline.max(0)
    tufts = c.rng.uniform(low, high, (leaves, 1, 2)) + arc(0, 0, max(1.2, 0.08 * min(high - low)), 0, 300, 6)
    c.add("vegetation", outline, green, [(tufts[k::3], shade(green, f)) for k, f in enumerate((0.68, 1.22, 1.45))])


# What stands on the pavement, each at (x, z).


def pavement(c: Canvas, x: float, near: float) -> None:
    """People, posts and parked two-wheelers in a row, from far to near; the first place is `near` metres ahead."""
    extra = pick(c.rng, {litter_bin: 0.4, signs: 0.3, motorcycle: 0.3})
    kinds = [signal, sign, lamp, person, person, person, bicycle, extra]
    places = near + np.cumsum(c.rng.uniform(0.8, 2.2, len(kinds)))
    for k, z in zip(c.rng.permutation(len(kinds)), places[::-1], strict=True):
        kinds[k](c, x + c.rng.uniform(-0.5, 0.5), z)


def pole(c: Canvas, outline: Points, on: Mapping) -> None:
    """A pole of any outline, shaded on its right."""
    color = some(c.rng, _METAL)
    c.add("pole", outline, color, [(rect(0.03, 0.16, 0, 9), shade(color, 0.7))], on)


def lamp(c: Canvas, x: float, z: float) -> None:
    """A street lamp, its arm over the road."""
    pole(c, path("-.15,0 .15,0 .14,4.6 1.6,4.9 1.6,5.15 -.14,4.85"), c.board(x, z, -np.sign(x), c.rng.uniform(0.9, 1.15)))


def signal(c: Canvas, x: float, z: float) -> None:
    """A traffic light."""
    on, lit = c.board(x, z, scale=c.rng.uniform(0.9, 1.1)), c.rng.integers(3)
    pole(c, rect(-0.15, 0.15, 0, 2.8), on)
    lamps = ((3.85, (214, 52, 40)), (3.39, (236, 176, 44)), (2.93, (64, 190, 96)))
    parts = [(arc(0, y, 0.2), shade(color, 1 if k == lit else 0.38)) for k, (y, color) in enumerate(lamps)]
    c.add("traffic light", rect(-0.36, 0.36, 2.6, 4.15), _DARK, parts, on)


def sign(c: Canvas, x: float, z: float) -> None:
    """A traffic sign."""
    pole(c, rect(-0.15, 0.15, 0, 2.6), c.board(x, z))
    plate(c, x, 2.6, z)


def signs(c: Canvas, x: float, z: float) -> None:
    """Two signs on a pair of posts: `polegroup`, which is not evaluated."""
    c.add("polegroup", rect(-0.3, 0.3, 0, 2.4), _STEEL, [(rect(-0.12, 0.12, 0, 2.4), _DARK)], c.board(x, z))
    plate(c, x, 1.7, z)
    plate(c, x, 2.7, z)


def plate(c: Canvas, x: float, y: float, z: float) -> None:
    """The plate of a traffic sign of one of six kinds, its middle at height y."""
    blue, disc, dash = (36, 84, 172), arc(0, 0, 0.5, n=14), rect(-0.28, 0.28, -0.09, 0.09)
    up, diamond = path("-.55,-.5 .55,-.5 0,.53"), path(".58,0 0,.58 -.58,0 0,-.58")
    kinds: list[tuple[Points, Color, Parts]] = [
        (disc, _RED, [(0.68 * disc, _WHITE), (0.8 * dash, _DARK)]),
        (disc, _RED, [(dash, _WHITE)]),
        (disc, blue, [(0.4 * up, _WHITE)]),
        (up, _RED, [(0.6 * up - (0, 0.06), _WHITE)]),
        (rect(-0.5, 0.5, -0.5, 0.5), blue, [(dash, _WHITE), (dash[:, ::-1], _WHITE)]),
        (diamond, _WHITE, [(0.75 * diamond, _YELLOW)]),
    ]
    outline, color, parts = kinds[c.rng.integers(len(kinds))]
    c.add("traffic sign", outline, color, parts, lambda p: c.at(x + p[..., 0], y + p[..., 1], z))


def litter_bin(c: Canvas, x: float, z: float) -> None:
    """A litter bin: `static`, which is not evaluated."""
    color = some(c.rng, _PAINT)
    c.add("static", path("-.3,0 .3,0 .38,1 -.38,1"), color, [(rect(-0.4, 0.4, 0.85, 1), shade(color, 0.6))], c.board(x, z))


def person(c: Canvas, x: float, z: float) -> None:
    """Somebody standing or walking."""
    rng, legs = c.rng, path(".19,.9 .21,0 .04,0 0,.72 -.04,0 -.21,0 -.19,.9")
    spread = 1 + rng.uniform(0, 0.9) * (1 - legs[:, 1:]) * (1, 0)  # the stride
    arms, back = path(".07,1.48 .26,1.43 .34,.84 .22,.84"), path("-.22,.84 -.34,.84 -.26,1.43 -.07,1.48")
    outline = np.concatenate([arms, legs * spread, back, arc(0, 1.62, 0.15, 240, -60)])
    skin, shirt, hair, trousers = some(rng, _SKIN), some(rng, _PAINT), some(rng, _HAIR), some(rng, _TROUSERS)
    parts = [(rect(-1, 1, 0, 0.95), trousers), (rect(-1, 1, 0, 0.08), _DARK), (rect(-0.4, 0.4, 0.82, 0.92), skin)]
    parts += [(rect(-0.19, 0.19, 0.8, 0.95), trousers), (cells([-0.2, 0.17], [0.9], 0.03, 0.4), shade(shirt, 0.7))]
    parts += [(rect(-0.2, 0.2, 1.46, 1.8), skin), (rect(-0.2, 0.2, 1.66, 1.8), hair)]
    c.add("person", outline, shirt, parts, c.board(x, z, scale=rng.uniform(0.92, 1.1)))


# Two-wheelers, from the side.


def sideways(c: Canvas, x: float, z: float) -> Mapping:
    """The board of something that turns its side to us, or nearly so, and looks either way."""
    return c.board(x, z, c.rng.uniform(0.8, 0.95) * c.rng.choice((-1, 1)), 1.1)


def bicycle(c: Canvas, x: float, z: float, on: Mapping | None = None) -> None:
    """A bicycle, seen through its wheels."""
    saddle, handlebar = path("-.32,.82 -.4,1 -.08,1 -.12,.82 .34,.85"), path(".26,1 .3,1.12 .52,1.12 .5,.9")
    crank, hubs = path(".06,.2 -.1,.2"), path("-.55,.36 .55,.36")[:, None]
    outline = np.concatenate([arc(-0.55, 0.36, 0.38, -20, -280), saddle, handlebar, arc(0.55, 0.36, 0.38, 100, -160), crank])
    rim, spokes = arc(0, 0, 0.33, 0, 360, 17), arc(0, 0, 0.33, 0, 300, 6)
    starts, stops = "-.55,.36 -.03,.3 -.2,.82 -.03,.3 -.55,.36 .55,.36", "-.03,.3 -.22,.86 .42,.85 .42,.85 -.2,.82 .38,1.08"
    parts = [(bars(hubs + 0 * spokes, hubs + spokes, 0.025), _STEEL), (bars(hubs + rim[:-1], hubs + rim[1:], 0.09), _DARK)]
    parts += [(bars(path(starts), path(stops), 0.085), some(c.rng, _PAINT))]
    parts += [(bars(path("-.4,.95 .28,1.07"), path("-.06,.95 .54,1.07"), 0.1), _DARK)]
    c.add("bicycle", outline, None, parts, on or sideways(c, x, z))


def motorcycle(c: Canvas, x: float, z: float, on: Mapping | None = None) -> None:
    """A motorcycle: fat tyres, engine, tank."""
    paint, top = some(c.rng, _PAINT), path("-.95,.86 -.5,.92 0,.92 .3,1.05 .36,1.2 .56,1.2 .62,.95")
    low = path(".2,.18 -.25,.18")
    outline = np.concatenate([arc(-0.68, 0.34, 0.36, -40, -250), top, arc(0.72, 0.34, 0.36, 100, -150), low])
    parts = [(arc(u, 0.34, r), color) for u in (-0.68, 0.72) for r, color in ((0.37, _DARK), (0.2, _STEEL), (0.08, _DARK))]
    parts += [(path(".67,.32 .77,.36 .51,1.17 .41,1.13"), _STEEL), (rect(-0.3, 0.3, 0.2, 0.62), (86, 88, 92))]
    parts += [(path(".05,.2 .05,.3 -.8,.39 -.8,.29"), _WHITE), (path("-1,.9 -.3,.8 -.3,.66 -.85,.72"), paint)]
    parts += [(path("-.12,.7 -.05,.95 .32,1.04 .42,.72"), paint), (rect(-0.6, -0.08, 0.8, 0.94), _DARK)]
    parts += [(arc(0.6, 0.98, 0.1), (250, 240, 190)), (rect(0.34, 0.58, 1.12, 1.2), _DARK)]
    c.add("motorcycle", outline, (52, 52, 56), parts, on or sideways(c, x, z))


def rider(c: Canvas, on: Mapping) -> None:
    """Somebody in the saddle: leaning forward, with a helmet and a bright band."""
    rng, back = c.rng, path("-.38,.86 -.36,1.15 -.16,1.52 0,1.56")
    front = path(".2,1.48 .52,1.16 .5,1.02 .2,1.2 .06,1 .32,.82 .2,.26 0,.26 .08,.7 -.2,.8")
    helmet = some(rng, (_WHITE, _YELLOW, _RED, (40, 60, 150)))
    parts = [(rect(-1, 1, 0, 0.98), some(rng, _TROUSERS)), (rect(-1, 1, 0, 0.36), _DARK), (rect(0.42, 1, 1, 1.12), _DARK)]
    parts += [(path("-.5,1.1 .2,1.26 .2,1.36 -.5,1.22"), (214, 232, 60)), (rect(0, 0.4, 1.54, 1.72), some(rng, _SKIN))]
    parts += [(rect(-0.2, 0.4, 1.7, 2), helmet), (rect(-0.2, 0.06, 1.6, 1.8), helmet)]
    c.add("rider", np.concatenate([back, arc(0.1, 1.72, 0.18, 230, -60), front]), some(rng, _PAINT), parts, on)


def cyclist(c: Canvas, x: float, z: float) -> None:
    """A rider on a bicycle."""
    on = sideways(c, x, z)
    bicycle(c, x, z, on)
    rider(c, on)


def motorcyclist(c: Canvas, x: float, z: float) -> None:
    """A rider on a motorcycle, nearer than a car would be."""
    on = sideways(c, x, 0.75 * z)
    motorcycle(c, x, z, on)
    rider(c, on)


# Vehicles, from behind or in front: (x, z) is the middle of the face that looks at us.


@dataclasses.dataclass(slots=True)
class Body:
    """A profile drawn out to a solid.

    Attributes:
      label: its Cityscapes name.
      width: metres.
      profile: outline from the side, [k, 2]: (metres behind the face that looks at us, up).
      color: of the body.
      face: details of that face, (right, up).
      flank: details of the side, (metres behind the face, up), drawn where the side can be seen.
      taper: share of the width that is lost per metre above the waist (0.9 m), details included.
    """

    label: str
    width: float
    profile: Points
    color: Color
    face: Parts
    flank: Parts
    taper: float = 0

    def draw(self, c: Canvas, x: float, z: float) -> None:
        """Paints it with its face at (x, z), a little larger or smaller than it is on paper."""
        scale, half = c.rng.uniform(0.94, 1.06), self.width / 2

        def at(u: Points | float, p: Points, depth: Points | float) -> Points:
            narrowed = u * (1 - self.taper * np.clip(p[..., 1] - 0.9, 0, 1))
            return c.at(x + scale * narrowed, scale * p[..., 1], z + scale * depth)

        sides = [at(u, self.profile, self.profile[:, 0]) for u in (-half, half)]
        front = rect(-half, half, 0, self.profile[1, 1])
        parts = [(at(p[..., 0], p, 0.0), color) for p, color in [(front, self.color), *self.face]]
        if abs(x) > scale * half:
            flank = [(self.profile, shade(self.color, 0.8)), *self.flank]
            parts = [(at(-np.sign(x) * half, p, p[..., 0]), color) for p, color in flank] + parts
        c.add(self.label, hull(np.concatenate(sides)), shade(self.color, 1.15), parts)


def wheels(*places: float, radius: float) -> Parts:
    """Wheels for a flank."""
    return [(arc(z, radius, r), color) for z in places for r, color in ((radius, _DARK), (radius / 2, _STEEL))]


def lights(c: Canvas, u: float, y: float, size: float) -> Parts:
    """A pair of tail lights, or of headlights."""
    color = (214, 30, 30) if c.rng.random() < 0.5 else (252, 244, 206)
    return [(cells([-u - size, u - size], [y - 0.6 * size], 2 * size, 1.2 * size), color)]


def car(c: Canvas, x: float, z: float) -> None:
    """A car: a low cabin of glass on a wider body."""
    paint, glass = some(c.rng, _PAINT), shade(_GLASS, 0.7)
    face = [(path("-.9,.98 .9,.98 .85,1.65 -.85,1.65"), glass), (rect(-1, 1, 0.25, 0.42), shade(paint, 0.55))]
    face += [(rect(-1, 1, 0, 0.25), _DARK), (rect(-0.26, 0.26, 0.5, 0.66), _WHITE), *lights(c, 0.72, 0.76, 0.16)]
    flank = [(rect(0, 5, 0, 0.22), _DARK), *wheels(0.8, 3.4, radius=0.34)]
    flank += [(path(".5,1 .85,1.47 1.5,1.47 1.5,1"), glass), (path("1.62,1 1.62,1.47 2.5,1.47 3,1"), glass)]
    profile = path("0,0 0,.95 .3,1 .7,1.55 2.6,1.55 3.3,1 4.2,.85 4.3,0")
    Body("car", 1.8, profile, paint, face, flank, taper=0.35).draw(c, x, z)


def truck(c: Canvas, x: float, z: float) -> None:
    """A lorry: a tall ribbed box with doors, open below, and its cab ahead."""
    paint = some(c.rng, _PAINT)
    edge, profile = shade(paint, 0.6), path("0,0 0,3.45 6,3.45 6.1,2.7 7.8,2.6 8,0")
    frame = (rect(-2, 2, 0.9, 1.05), rect(-2, 2, 3.3, 4), rect(-0.05, 0.05, 0.9, 4))
    face = [(rect(-2, 2, 0, 0.9), _DARK), *((p, edge) for p in frame), *lights(c, 1.0, 0.5, 0.13)]
    face += [(cells([-0.5, 0.4], [1.05], 0.07, 2.2), _WHITE), (cells(np.arange(-1.25, 1, 0.5), [0.62], 0.25, 0.18), _RED)]
    flank = [(rect(0, 6, 0, 0.9), _DARK), (cells(np.arange(0.2, 6, 0.7), [0.9], 0.12, 3), edge), (rect(6, 8, 0, 4), edge)]
    flank += [(rect(6.5, 7.8, 1.5, 2.4), _GLASS), *wheels(1, 2.1, 6.9, radius=0.48)]
    Body("truck", 2.5, profile, paint, face, flank).draw(c, x, z)


def bus(c: Canvas, x: float, z: float) -> None:
    """A bus: one band of glass all around, a lit destination above it, a stripe below."""
    paint, stripe = some(c.rng, _PAINT), some(c.rng, (_YELLOW, _WHITE, (60, 160, 190)))
    face = [(rect(-1.12, 1.12, 1.35, 2.5), _GLASS), (path("-.9,1.4 -.3,1.4 .3,2.45 -.3,2.45"), shade(_GLASS, 1.3))]
    face += [(rect(-0.9, 0.9, 2.6, 2.96), _DARK), (rect(-0.6, 0.6, 2.7, 2.86), _YELLOW)]
    skirt = [(rect(-2, 12, 0.85, 1.12), stripe), (rect(-2, 12, 0, 0.3), _DARK)]
    flank = [*skirt, (cells(np.arange(0.3, 10, 1.5), [1.35], 1.35, 1.15), _GLASS), *wheels(2.2, 8.5, radius=0.46)]
    face += [*skirt, *lights(c, 0.95, 0.6, 0.17)]
    Body("bus", 2.5, path("0,0 0,3.1 11,3.1 11.2,0"), paint, face, flank).draw(c, x, z)


def train(c: Canvas, x: float, z: float) -> None:
    """A tram: long, cream over a coloured skirt, a pantograph on its roof."""
    skirt, cream = some(c.rng, _PAINT), some(c.rng, ((236, 226, 200), (226, 228, 230)))
    face = [(rect(-2, 2, 0, 1.25), skirt), (path("-1,1.5 1,1.5 .8,2.75 -.8,2.75"), shade(_GLASS, 0.75))]
    face += [(rect(-2, 2, 0, 0.25), _DARK), (rect(-0.06, 0.06, 0.3, 1.2), cream), *lights(c, 0.9, 0.8, 0.15)]
    flank = [(rect(0, 24, 0, 1.25), shade(skirt, 0.8)), (cells(np.arange(1.2, 23, 1.7), [1.6], 1.1, 1.0), _GLASS)]
    flank += [(cells([3.0, 9.8, 16.6], [0.3], 1.2, 2.3), shade(skirt, 0.6)), (rect(0, 24, 3.05, 3.3), _STEEL)]
    profile = path("0,.1 0,2.8 .8,3.3 2.5,3.3 3.2,4 4.6,4 5.3,3.3 24,3.3 24,.1")
    Body("train", 2.6, profile, cream, face, flank).draw(c, x, z)


def hood(c: Canvas) -> None:
    """The bonnet of the car that carries the camera: `ego vehicle`, which is not evaluated."""
    w, rise, color = c.width, c.rng.uniform(0.05, 0.1) * c.height, some(c.rng, ((40, 42, 48), (90, 94, 100), (120, 30, 30)))
    across, below = np.linspace(-1, 1, 15), np.array((0, rise))
    outline = np.stack([w / 2 + 0.44 * w * across, c.height - 1 - rise * np.sqrt(1 - across**4)], -1)
    shine = np.concatenate([outline + 0.15 * below, outline[::-1] + 0.35 * below])
    c.add("ego vehicle", outline, color, [(shine, shade(color, 1.5))])
