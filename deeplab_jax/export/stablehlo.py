"""Serialize a network as StableHLO with `jax.export`, for any number of images of any size, on CPUs, GPUs and TPUs."""

import io
import json
import zipfile
from typing import Any, Literal

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt8

from deeplab_jax.config import EvalConfig
from deeplab_jax.evaluation import inference
from deeplab_jax.export.loading import METADATA, PROGRAM
from deeplab_jax.models import DeepLabV3

Output = Literal["labels", "logits"]
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def serialize(
    network: DeepLabV3,
    params: dict[str, Any],
    output: Output,
    metadata: dict[str, Any],
    size: tuple[int, int] | None = None,
) -> bytes:
    """Serialize the network to bytes that `load_exported` can read.

    The program maps images, uint8 [n, c, h, w], to labels, uint8 [n, h, w], or to logits, float32 [n, k, h, w], both at image
    resolution.

    Args:
      network: The network at the desired output stride.
      params: The variables, {"params"}, which become part of the program.
      output: "labels" or "logits".
      metadata: JSON values to store in the file.
      size: The height and width of the images, of which there is then one, or None for any number and size.
    """

    def run(images: UInt8[Array, "n c h w"]) -> Array:
        logits = inference.logits(params, images.transpose(0, 2, 3, 1), model=network, protocol=EvalConfig())
        return jnp.argmax(logits, -1).astype(jnp.uint8) if output == "labels" else logits.transpose(0, 3, 1, 2)

    n, h, w = (1, *size) if size else jax.export.symbolic_shape("n, h, w")
    program = jax.export.export(jax.jit(run), platforms=PLATFORMS)(
        jax.ShapeDtypeStruct((n, network.config.channels, h, w), np.uint8)
    )
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        file.writestr(METADATA, json.dumps(metadata, indent=2))
        file.writestr(PROGRAM, bytes(program.serialize()))
    return content.getvalue()
