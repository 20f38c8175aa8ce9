"""Running an exported StableHLO file, which takes neither the model's code nor a config."""

import dataclasses
import json
import zipfile
from collections.abc import Callable
from typing import IO, Any

import jax
import jax.export
import numpy as np
from jaxtyping import Array, UInt8

from deeplab_jax.errors import DataError, one_line

PROGRAM, METADATA = "program.bin", "metadata.json"


@dataclasses.dataclass(frozen=True)
class Exported:
    """A network that was exported.

    Attributes:
      metadata: "names" and "colors" by train id, "mean", "std", "output" ("labels" or "logits"), "versions", and more.
      program: what computes, for `jax.jit`.
    """

    metadata: dict[str, Any]
    program: Callable[[Any], Array]

    def __call__(self, images: UInt8[np.ndarray, "n 3 h w"]) -> np.ndarray:
        """Labels uint8 [n, h, w] or logits float32 [n, k, h, w], as exported; one compilation a shape.

        Args:
          images: RGB, 0-255, any number, height and width.

        Raises:
          DataError: another dtype or shape.
        """
        return np.asarray(self.program(checked_images(images)))


def checked_images(images: UInt8[np.ndarray, "n 3 h w"]) -> UInt8[np.ndarray, "n 3 h w"]:
    """The argument of what people call with images.

    Raises:
      DataError: another dtype or shape.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise DataError(f"`images` (={images.dtype} {list(images.shape)}) must be uint8 [n, 3, h, w]: RGB values from 0 to 255")
    return images


def load_exported(path: str) -> Exported:
    """The network of a file that `deeplab-jax export --format stablehlo` wrote.

    Raises:
      DataError: it is none, or of a JAX whose programs this one cannot read.
    """
    try:
        with open(path, "rb") as file:
            return load(file)
    except Exception as error:  # deserializing garbage fails in many ways
        raise DataError(f"{path} cannot be loaded ({one_line(error)}): give a file of deeplab-jax export") from None


def load(file: IO[bytes]) -> Exported:
    """What `load_exported` gives, of an open file; any error."""
    with zipfile.ZipFile(file) as parts:
        program = jax.export.deserialize(bytearray(parts.read(PROGRAM)))
        return Exported(json.loads(parts.read(METADATA)), jax.jit(program.call))
