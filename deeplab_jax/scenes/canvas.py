"""Draws street scenes with exact labels.

Everything is a polygon given in metres and projected by a pinhole camera: x to the right of the camera, y above the ground,
z ahead. One rasterised mask of the polygon cuts image, label and instance alike, so they agree in every pixel, and drawing
the polygons again in the same order gives the label back.

The camera stands at x = 0: what is further from the middle of the street never hides what is nearer to it. Scenes are
therefore painted lane by lane from the outside in, and from far to near within a lane.
"""

import dataclasses
import math
from collections.abc import Callable
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
GRAIN = {"sky": 1.5, "road": 5, "terrain": 13, "vegetation": 12, "building": 5, "wall": 7}  # noise in grey levels; others: 3.5


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
        grain[[IDS[name] for name in GRAIN]] = list(GRAIN.values())
        noise = grain[label_ids] * rng.standard_normal(label_ids.shape, np.float32)
        channels = zip(self.image.split(), (1 + warmth, 1, 1 - warmth), strict=True)
        image = np.stack([np.clip(np.asarray(v) * (gain * light) + noise, 0, 255).astype(np.uint8) for v, gain in channels], -1)
        return Scene(image, label_ids, np.asarray(self.instances).astype(np.uint16), tuple(self.objects))
