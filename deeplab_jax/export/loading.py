"""Running an exported StableHLO file, which needs neither the model's code nor a config."""

import dataclasses
import io
import json
import zipfile
from collections.abc import Callable
from typing import Any

import jax
import jax.export
import numpy as np
from jaxtyping import Array, UInt8

from deeplab_jax.errors import DataError, one_line
from deeplab_jax.evaluation.pictures import require_images

PROGRAM, METADATA = "program.bin", "metadata.json"


@dataclasses.dataclass(frozen=True)
class Exported:
    """An exported network.

    Attributes:
      metadata: "names" and "colors" by train id, "mean", "std", "output" ("labels" or "logits"), "versions", and more.
      program: the computation, jitted.
    """

    metadata: dict[str, Any]
    program: Callable[[Any], Array]

    def __call__(self, images: UInt8[np.ndarray, "n 3 h w"]) -> np.ndarray:
        """Return labels uint8 [n, h, w] or logits float32 [n, k, h, w], as exported; one compilation a shape.

        Args:
          images: RGB, 0-255, any number, height and width.

        Raises:
          DataError: another dtype or shape.
        """
        return np.asarray(self.program(require_images(images)))


def load_exported(path: str) -> Exported:
    """Return the network of a file that `deeplab-jax export --format stablehlo` wrote.

    Raises:
      DataError: It is no such file, or comes from a JAX whose programs this one cannot read.
    """
    try:
        with open(path, "rb") as file:
            return load(file.read())
    except Exception as error:  # deserializing garbage fails in many ways
        raise DataError(f"{path} cannot be loaded ({one_line(error)}): give a file of deeplab-jax export") from None


def load(content: bytes) -> Exported:
    """Return what `load_exported` returns, from the file's content; any error may be raised."""
    with zipfile.ZipFile(io.BytesIO(content)) as parts:
        program = jax.export.deserialize(bytearray(parts.read(PROGRAM)))
        return Exported(json.loads(parts.read(METADATA)), jax.jit(program.call))
