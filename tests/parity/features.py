"""Compute our backbone features with pretrained weights from fill.py. PyTorch is not needed."""

import dataclasses
import pathlib
import tempfile

import fill
import jax
import numpy as np
from safetensors.numpy import save_file

from deeplab_jax.config import Config
from deeplab_jax.models.backbones import find_backbone
from deeplab_jax.weights import state_dicts, transfer
from deeplab_jax.weights.recognize import recognize

GOLDEN = pathlib.Path(__file__).parent / "golden" / "backbones"
KINDS = ("low", "aux", "last")
SIZE = (97, 129)


def make_images() -> np.ndarray:
    """Return a test image as float32 [1, h, w, 3], with values in the range of normalised images.

    All values are exactly representable in float32.
    """
    return (fill.image(*SIZE).astype(np.float32) - 128) / 64


def read_output_stride(name: str) -> int:
    """Return the output stride in a network's name, such as 8 in `timm_xception65_os8`, or 32 if the name has none."""
    return int(name.partition("_os")[2] or 32)


def compute_features(weights: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """Return our backbone's features as a dict keyed by kind.

    The weights are stored in a file with this name, because some networks only differ from others in their names. They are
    loaded the same way a training run loads pretrained weights.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/{name}.safetensors"
        save_file(weights, path)
        model = recognize(state_dicts.read(path)).config.model
        config = Config(model=dataclasses.replace(model, output_stride=read_output_stride(name), pretrained=path))
        variables = transfer.pretrained_variables(config, lambda _: None)
    network = find_backbone(config.model.backbone).make(config.model)
    variables = {collection: part["backbone"] for collection, part in variables.items()}
    features = jax.jit(network.apply, static_argnums=2)(variables, jax.numpy.asarray(make_images()), False)
    return {kind: np.asarray(getattr(features, kind)) for kind in KINDS}


def sample(x: np.ndarray) -> np.ndarray:
    """Return every third row, column and channel of `x`, as stored in the golden files."""
    return x[:, ::3, ::3, ::3]
