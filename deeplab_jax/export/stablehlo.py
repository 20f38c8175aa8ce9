"""Serialise a network as StableHLO with `jax.export`, for any number of images of any size, on CPUs, GPUs and TPUs.

A program for images of any size contains plain convolutions. CPUs have faster forms, but these need fixed sizes, so the file
also contains a program for CPUs for each of many canvases. All programs share one copy of the weights.
"""

import functools
import io
import json
import zipfile
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array, Int32, UInt8

from deeplab_jax.config import EvalConfig
from deeplab_jax.evaluation import inference
from deeplab_jax.export.loading import FIXED, METADATA, PROGRAM, WEIGHTS, canvas_name
from deeplab_jax.models import DeepLabV3
from deeplab_jax.models.target import compiling_for
from deeplab_jax.runtime.canvases import Canvas, Size

Output = Literal["labels", "logits"]
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def serialize(
    network: DeepLabV3,
    params: dict[str, Any],
    output: Output,
    metadata: dict[str, Any],
    size: Size | None = None,
    canvases: Sequence[Canvas] = (),
) -> bytes:
    """Serialise the network to bytes that `load_exported` can read.

    The programs map images, uint8 [n, c, h, w], to labels, uint8 [n, h, w], or to logits, float32 [n, k, h, w], both at image
    resolution.

    Args:
      network: The network at the desired output stride.
      params: The variables, {"params"}.
      output: "labels" or "logits".
      metadata: JSON values to store in the file.
      size: The height and width of the images, of which there is then one, or None for any number and size.
      canvases: The canvases for which the file has a faster program for CPUs.
    """
    weights = {"/".join(path): np.asarray(value) for path, value in traverse_util.flatten_dict(params).items()}
    channels, run = network.config.channels, functools.partial(_run, network=network, output=output)
    images = functools.partial(jax.ShapeDtypeStruct, dtype=np.uint8)
    n, h, w = (1, *size) if size else jax.export.symbolic_shape("n, h, w")
    parts = {PROGRAM: _export(functools.partial(run, platform="gpu"), PLATFORMS, weights, images((n, channels, h, w)))}
    if size:
        parts[FIXED] = _export(functools.partial(run, platform="cpu"), ("cpu",), weights, images((1, channels, *size)))
    for canvas in canvases:
        arguments = (images((1, channels, *canvas.size)), jax.ShapeDtypeStruct((1, 2), np.int32))
        parts[canvas_name(canvas.size)] = _export(functools.partial(run, platform="cpu"), ("cpu",), weights, *arguments)
    arrays, content = io.BytesIO(), io.BytesIO()
    np.savez(arrays, **weights)  # type: ignore[arg-type]
    with zipfile.ZipFile(content, "w") as file:
        file.writestr(METADATA, json.dumps(metadata, indent=2))
        file.writestr(WEIGHTS, arrays.getvalue())
        for name, part in parts.items():
            file.writestr(name, part, zipfile.ZIP_DEFLATED)
    return content.getvalue()


def _run(
    weights: dict[str, Array],
    images: UInt8[Array, "n c h w"],
    sizes: Int32[Array, "n 2"] | None = None,
    *,
    network: DeepLabV3,
    output: Output,
    platform: str,
) -> Array:
    params = traverse_util.unflatten_dict({tuple(name.split("/")): value for name, value in weights.items()})
    with compiling_for(platform):
        images = images.transpose(0, 2, 3, 1)
        logits = inference.logits(params, images, sizes, model=network, protocol=EvalConfig())
    return jnp.argmax(logits, -1).astype(jnp.uint8) if output == "labels" else logits.transpose(0, 3, 1, 2)


def _export(function: Any, platforms: Sequence[str], *arguments: Any) -> bytes:
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments)
    return bytes(jax.export.export(jax.jit(function), platforms=platforms)(*shapes).serialize())
