"""Run an exported StableHLO file. This requires neither the model code nor a config."""

import dataclasses
import functools
import io
import json
import math
import os
import zipfile
from collections.abc import Mapping
from typing import Any

import jax
import jax.export
import numpy as np
from etils import epath
from jaxtyping import UInt8

from deeplab_jax.checkpoints.paths import EXPORTED, EXPORTED_PROGRAM, classify_file, describe_path
from deeplab_jax.errors import DataError, one_line
from deeplab_jax.evaluation.pictures import require_images
from deeplab_jax.runtime.canvases import Size, place_images
from deeplab_jax.runtime.compilation import Programs

PROGRAM, METADATA, WEIGHTS = EXPORTED_PROGRAM, "metadata.json", "weights.npz"
FIXED = "cpu/fixed.bin"  # a CPU's program for the size of PROGRAM
_CANVAS = "cpu/canvas-"
# A canvas with more than this many times the pixels of an image would take longer than the program with plain convolutions.
MAX_PADDED = 2


def canvas_name(canvas: Size) -> str:
    """Return the name of the part with a CPU's program for a canvas."""
    return f"{_CANVAS}{canvas[0]}x{canvas[1]}.bin"


@dataclasses.dataclass(frozen=True, eq=False)
class Exported:
    """An exported network. It can be copied and pickled. A copy compiles its own programs.

    Attributes:
      metadata: The file's metadata, including "names" and "colors" by train id, "mean", "std", "value_range" (the stored
        values that training scaled to 0 and 255, if any), "output" ("labels" or "logits") and "versions".
      parts: The file's serialized programs.
      weights: The arrays that every program takes first. Empty for a file whose program contains them.
      shape: The [n, c, h, w] of the images that the file takes. A symbol stands for any number.
    """

    metadata: dict[str, Any]
    parts: Mapping[str, bytes] = dataclasses.field(repr=False)  # many megabytes, which a notebook would print
    weights: Mapping[str, np.ndarray] = dataclasses.field(repr=False)
    shape: tuple[Any, ...]

    def __call__(self, images: UInt8[np.ndarray, "n c h w"]) -> np.ndarray:
        """Return labels, uint8 [n, h, w], or logits, float32 [n, k, h, w], depending on the export.

        Args:
          images: Any number of images of any height and width, with values from 0 to 255. On a CPU, images of different sizes
            share the programs of a few canvases, unless a canvas would be twice as large as the image. In all other cases, the
            program is compiled once for each shape.

        Raises:
          DataError: The images have the wrong dtype or shape.
        """
        images = require_images(images, self.shape[1])
        if any(isinstance(own, int) and own != size for own, size in zip(self.shape, images.shape, strict=True)):
            raise DataError(
                f"`images` (of shape {list(images.shape)}) cannot be used: this file takes uint8 {list(self.shape)}. "
                "Resize them, or export the network without --size."
            )
        if jax.default_backend() == "cpu" and (canvas := self._find_canvas((images.shape[2], images.shape[3]))):
            return np.stack([self._run_on_canvas(image, canvas) for image in images])
        is_fixed = jax.default_backend() == "cpu" and FIXED in self.parts
        return np.array(self.run(FIXED if is_fixed else PROGRAM, images))  # a copy, because JAX's arrays are read-only

    def run(self, part: str, *arguments: Any) -> jax.Array:
        """Run one of the file's programs."""
        return self._program(part)(*arguments)

    def _find_canvas(self, size: Size) -> Size | None:
        names = [name.removeprefix(_CANVAS).removesuffix(".bin") for name in self.parts if name.startswith(_CANVAS)]
        canvases = [(int(height), int(width)) for height, width in (name.split("x") for name in names)]
        fitting = [
            canvas
            for canvas in canvases
            if size[0] <= canvas[0] and size[1] <= canvas[1] and math.prod(canvas) <= MAX_PADDED * math.prod(size)
        ]
        return min(fitting, key=lambda canvas: canvas[0] * canvas[1], default=None)

    def _run_on_canvas(self, image: UInt8[np.ndarray, "c h w"], canvas: Size) -> np.ndarray:
        placed, sizes = place_images([image.transpose(1, 2, 0)], canvas)
        output = self.run(canvas_name(canvas), placed.transpose(0, 3, 1, 2), sizes)
        return np.asarray(output)[0, ..., : image.shape[1], : image.shape[2]]

    def __getstate__(self) -> dict[str, Any]:
        # Leave out the compiled programs, which cannot be copied.
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def _program(self, part: str) -> Any:
        def make() -> Any:
            call = jax.jit(_deserialize(self.parts[part]).call)
            return functools.partial(call, self._device_weights) if self.weights else call

        return self._programs.get(part, make)

    @functools.cached_property
    def _programs(self) -> Programs:
        return Programs()

    @functools.cached_property
    def _device_weights(self) -> dict[str, jax.Array]:
        return jax.device_put(dict(self.weights))


def load_exported(path: str | os.PathLike[str]) -> Exported:
    """Load the network from a file written by `deeplab-jax export --format stablehlo`.

    Raises:
      DataError: The file is not an exported network, or was written by an incompatible JAX version.
    """
    if not isinstance(path, str | os.PathLike):
        raise DataError(f"`path` (={path!r}) is not a path. Give a file written by `deeplab-jax export`.")
    path = os.path.expanduser(path)
    try:
        with open(path, "rb") as file:
            return load(file.read())
    except Exception as error:  # deserializing an invalid file can raise any error
        if os.path.isfile(path) and classify_file(epath.Path(path)) == "stablehlo":
            raise DataError(f"{path} cannot be loaded ({one_line(error)}). Export it again with this version of JAX.") from None
        raise DataError(f"`path` (={path!r}) cannot be loaded, because it {describe_path(path, EXPORTED)}") from None


def load(content: bytes) -> Exported:
    """Load the network from a file's content. Unlike `load_exported`, this can raise any error for invalid content."""
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        parts = {name: file.read(name) for name in file.namelist() if name.endswith(".bin")}
        weights: dict[str, np.ndarray] = {}
        if WEIGHTS in file.namelist():
            with np.load(io.BytesIO(file.read(WEIGHTS))) as arrays:
                weights = dict(arrays)
        return Exported(json.loads(file.read(METADATA)), parts, weights, _deserialize(parts[PROGRAM]).in_avals[-1].shape)


def _deserialize(part: bytes) -> jax.export.Exported:
    return jax.export.deserialize(bytearray(part))
