"""A backbone's features with weights of `fill`, through `weights import`. No PyTorch here."""

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


def images() -> np.ndarray:
    """float32 [1, h, w, 3], as if normalised; the numbers are exact."""
    return (fill.image(*SIZE).astype(np.float32) - 128) / 64


def ours(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """By kind, of the network that a training starts from these weights; undilated, as references' backbones are."""
    with tempfile.TemporaryDirectory() as folder:
        save_file(weights, f"{folder}/backbone.safetensors")
        model = recognize(state_dicts.read(f"{folder}/backbone.safetensors")).config.model
        config = Config(model=dataclasses.replace(model, output_stride=32, pretrained=f"{folder}/backbone.safetensors"))
        variables = transfer.pretrained_variables(config, lambda _: None)
    network = find_backbone(config.model.backbone).make(config.model)
    own = {kind: part["backbone"] for kind, part in variables.items()}
    features = jax.jit(network.apply, static_argnums=2)(own, jax.numpy.asarray(images()), False)
    return {kind: np.asarray(getattr(features, kind)) for kind in KINDS}


def sample(x: np.ndarray) -> np.ndarray:
    """What a golden file keeps: every third pixel and channel."""
    return x[:, ::3, ::3, ::3]
