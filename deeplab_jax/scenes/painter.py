"""Paint street scenes with exact labels.

Every object is a polygon. Its corners are given in metres (x to the right of the camera, y above the ground, z ahead) and
projected by a pinhole camera. Each polygon is rasterised once, and the same mask is used to paint the image, the labels and
the instances, so they agree in every pixel. Painting the polygons again in the same order reproduces the labels.

The camera is at x = 0, so objects further to the side never hide objects closer to the middle of the street. Scenes are
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
Points = np.ndarray  # float [..., k, 2]: one polygon, or several polygons with k corners each
Parts = list[tuple[Points, Color]]
Projection = Callable[[Points], Points]  # maps points on a plane (in metres) to pixels
Object = tuple[str, list[list[int]]]  # a polygon: its class name and its corners [[x, y], ...] in pixels
# The noise standard deviation for each material, in grey levels. The default for other materials is 3.5.
GRAIN = {"sky": 1.5, "road": 5, "terrain": 13, "vegetation": 12, "building": 5, "wall": 7}


@dataclasses.dataclass(frozen=True, slots=True)
class Scene:
    """An image and its annotations in the Cityscapes format.

    Attributes:
      image: The RGB image, uint8 [h, w, 3].
      label_ids: The Cityscapes ids, uint8 [h, w].
      instance_ids: The instance ids, uint16 [h, w]. For classes with countable objects (THINGS), a pixel's value is
        1000 * id + k, where k is the object number, starting at 0. Elsewhere, it is the Cityscapes id.
      objects: The (label, [[x, y], ...]) polygons in painting order. Painting them again in this order reproduces `label_ids`.
    """

    image: np.ndarray
    label_ids: np.ndarray
    instance_ids: np.ndarray
    objects: tuple[Object, ...]


class Painter:
    """Paints objects as a camera sees them, and holds the image, labels and instances painted so far.

    Args:
      rng: The random generator for all choices in the scene.
      size: The (height, width) of the image in pixels.
    """

    def __init__(self, rng: np.random.Generator, size: tuple[int, int]) -> None:
        self.rng = rng
        self.height, self.width = size
        self.focal = 1.15 * self.height
        self.eye = rng.uniform(1.55, 1.9)
        self.horizon = self.height * rng.uniform(0.38, 0.45)
        self.centre = self.width * rng.uniform(0.45, 0.55)
        self.bend = rng.uniform(-0.002, 0.002)  # the street shifts sideways by bend * z**2 metres at distance z
        self.mirror = rng.choice((-1, 1))
        self.image = Image.new("RGB", (self.width, self.height))
        self.labels = Image.new("L", self.image.size)
        self.instances = Image.new("I", self.image.size)
        self.objects: list[Object] = []

    def project(self, x: Points | float, y: Points | float, z: Points | float) -> Points:
        """Project points from metres to pixel positions [..., 2]."""
        scale = self.focal / z
        right = self.centre + self.mirror * (x + self.bend * z * z) * scale
        down = self.horizon + (self.eye - y) * scale
        pixels = np.empty((*np.broadcast(right, down).shape, 2))
        pixels[..., 0], pixels[..., 1] = right, down
        return pixels

    def project_ground(self, p: Points) -> Points:
        """Project (z, x) points on the ground to pixel positions."""
        return self.project(p[..., 1], 0.0, p[..., 0])

    def facade_plane(self, x: float) -> Projection:
        """Return the projection for (z, y) points on the vertical plane along the street at x."""
        return lambda p: self.project(x, p[..., 1], p[..., 0])

    def facing_plane(self, x: float, z: float, stretch: float = 1.0, scale: float = 1.0) -> Projection:
        """Return the projection for (right, up) points on the vertical plane that faces the camera at (x, z).

        A negative `stretch` mirrors the plane horizontally.
        """
        return lambda p: self.project(x + stretch * scale * p[..., 0], scale * p[..., 1], z)

    def paint(self, label: str, outline: Points, fill: Color | None, parts: Parts, on: Projection | None = None) -> None:
        """Paint an object over everything painted so far.

        Args:
          label: The Cityscapes class name.
          outline: The object's corners [k, 2], which are rounded to whole pixels.
          fill: The fill colour. None leaves the background visible, for example behind a fence.
          parts: Coloured polygons to paint on the object, clipped to its outline.
          on: The projection for the outline and the parts. None means that both are given in pixels.
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

    def finish(self) -> Scene:
        """Add lighting and noise to the image, and return the scene.

        The lighting combines a soft shadow, a brightness and a colour temperature. GRAIN defines the noise for each material.
        """
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
