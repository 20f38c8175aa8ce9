"""Run an exported StableHLO file. This requires neither the model code nor a config."""

import dataclasses
import io
import json
import os
import zipfile
from collections.abc import Callable
from typing import Any

import jax
import jax.export
import numpy as np
from etils import epath
from jaxtyping import Array, UInt8

from deeplab_jax.checkpoints.paths import EXPORTED, EXPORTED_PROGRAM, classify_file, describe_path
from deeplab_jax.errors import DataError, one_line
from deeplab_jax.evaluation.pictures import require_images

PROGRAM, METADATA = EXPORTED_PROGRAM, "metadata.json"


@dataclasses.dataclass(frozen=True)
class Exported:
    """An exported network.

    Attributes:
      metadata: The file's metadata, including "names" and "colors" by train id, "mean", "std", "output" ("labels" or "logits")
        and "versions".
      program: The jitted computation.
      channels: The number of channels in the images.
    """

    metadata: dict[str, Any]
    program: Callable[[Any], Array]
    channels: int

    def __call__(self, images: UInt8[np.ndarray, "n c h w"]) -> np.ndarray:
        """Return labels, uint8 [n, h, w], or logits, float32 [n, k, h, w], depending on the export.

        Args:
          images: Any number of images of any height and width, with values from 0 to 255. The program is compiled once for each
            shape.

        Raises:
          DataError: The images have the wrong dtype or shape.
        """
        return np.asarray(self.program(require_images(images, self.channels)))


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
    with zipfile.ZipFile(io.BytesIO(content)) as parts:
        program = jax.export.deserialize(bytearray(parts.read(PROGRAM)))
        return Exported(json.loads(parts.read(METADATA)), jax.jit(program.call), program.in_avals[0].shape[1])
