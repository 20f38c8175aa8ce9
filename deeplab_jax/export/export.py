"""Write a checkpoint as a file that runs elsewhere, and keep the file only if it computes what the checkpoint does."""

import dataclasses
import importlib.metadata
import importlib.util
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np
from etils import epath
from jaxtyping import UInt8

from deeplab_jax.api import Segmenter
from deeplab_jax.checkpoints.store import resolve, restore_model, stored_config
from deeplab_jax.config import Config, EvalConfig
from deeplab_jax.errors import CheckpointError, ConfigError
from deeplab_jax.evaluation.inference import evaluation_model
from deeplab_jax.export import loading, stablehlo
from deeplab_jax.export.folding import fold
from deeplab_jax.files import replacing
from deeplab_jax.models import DeepLabV3

Format = Literal["stablehlo", "onnx"]
Run = Callable[[np.ndarray], np.ndarray]

# Images, height and width that a file is checked at; odd ones show how sizes are rounded.
CHECKED_SIZES = ((1, 97, 129), (2, 64, 100))
LOGITS_TOLERANCE = 1e-4  # |difference| / |logits|: sums in another order differ by 1e-6 or so
LABELS_TOLERANCE = 1e-3  # share of the pixels: labels change where two logits are equal to the last digits


def export(checkpoint: str, out: str, fmt: Format, output: stablehlo.Output, say: Callable[[str], None] = print) -> None:
    """Write the network of `checkpoint` to the file `out`, in float32, whole images at one scale.

    Args:
      checkpoint: what `resolve` takes.
      out: file to write; it appears whole or not at all.
      fmt: "stablehlo" (for `load_exported`) or "onnx".
      output: "labels" or "logits".
      say: called with each line about what was done.

    Raises:
      CheckpointError: there is no checkpoint, or it cannot be read, or the file computes something else.
      ConfigError: a package is missing, or `out` cannot be written.
    """
    if fmt == "onnx":
        _require_onnx()
    step = str(resolve(checkpoint))
    stored = stored_config(step)
    variables = restore_model(step, like=stored)
    config = _plain(stored, say)
    metadata = _metadata(config, step, output)
    make, load = _FORMATS[fmt]
    network = _find_network(config)
    content = make(network, fold(variables, network), output, metadata)
    with jax.default_matmul_precision("highest"):  # GPUs round to TF32 otherwise
        differences = _differences(load(content), Segmenter(config, jax.device_put(variables)), output)
    bound = LOGITS_TOLERANCE if output == "logits" else LABELS_TOLERANCE
    if not all(difference <= bound for difference in differences):  # nan fails too
        shown = " and ".join(f"{difference:.1e}" for difference in differences)
        raise CheckpointError(f"`--out` (={out!r}) is not kept: its {output} differ from those of {step} by {shown}")
    with replacing(epath.Path(out)) as file:
        file.write(content)
    sizes = ", ".join(f"{n} x {h} x {w}" for n, h, w in CHECKED_SIZES)
    say(f"checked at {sizes}: {output} differ by at most {max(differences):.1e}")
    say(f"{out}: {len(content) / 2**20:.1f} MiB, uint8 [n, 3, h, w] to {output}, any n, h and w")


def _plain(config: Config, say: Callable[[str], None]) -> Config:
    """Return the config of the network in float32, on whole images at one scale."""
    plain = EvalConfig(output_stride=config.eval.output_stride)
    protocol = {"window": config.eval.window, "scales": config.eval.scales, "flip": config.eval.flip}
    if any(value != getattr(plain, field) for field, value in protocol.items()):
        say(f"eval.window, eval.scales and eval.flip (={', '.join(map(str, protocol.values()))}) are no part of the file")
    return dataclasses.replace(config, model=dataclasses.replace(config.model, dtype="float32"), eval=plain)


def _metadata(config: Config, step: str, output: str) -> dict[str, Any]:
    labels = config.labels
    return {
        "labels": labels.name,
        "names": list(labels.names),
        "colors": [list(color) for color in labels.colors],
        "mean": list(config.model.mean),
        "std": list(config.model.std),
        "input": "uint8 [n, 3, h, w], RGB; normalised inside",
        "output": output,
        "output_stride": evaluation_model(config).config.output_stride,
        "backbone": config.model.backbone,
        "checkpoint": epath.Path(step).name,
        "versions": {name: importlib.metadata.version(name) for name in ("deeplab-jax", "jax", "flax")},
    }


def _find_network(config: Config) -> DeepLabV3:
    """Return the network at the output stride of evaluation, without what training alone needs."""
    network = evaluation_model(config)
    return dataclasses.replace(network, config=dataclasses.replace(network.config, aux_head=False, remat=()))


def _make_onnx(network: DeepLabV3, params: dict[str, Any], output: stablehlo.Output, metadata: dict[str, Any]) -> bytes:
    from deeplab_jax.export import onnx  # an extra

    return onnx.serialize(network, params, output, metadata)


def _load_onnx(content: bytes) -> Run:
    from deeplab_jax.export import onnx

    return onnx.load(content)


# How the content of a file is made, and what runs it.
_FORMATS: dict[Format, tuple[Callable[..., bytes], Callable[[bytes], Run]]] = {
    "stablehlo": (stablehlo.serialize, loading.load),
    "onnx": (_make_onnx, _load_onnx),
}


def _require_onnx() -> None:
    for name in ("onnx", "onnxruntime"):
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"--format onnx needs {name}: pip install 'deeplab-jax[onnx]'")


def _differences(run: Run, segmenter: Segmenter, output: stablehlo.Output) -> list[float]:
    """Return a difference at each of CHECKED_SIZES: |a - b| / |b| of logits, the share of differing pixels of labels."""
    differences = []
    for seed, size in enumerate(CHECKED_SIZES):
        images = _clouds(seed, *size)
        if output == "labels":
            differences.append(float(np.mean(run(images) != segmenter.predict(images))))
        else:
            expected = segmenter.logits(images)
            differences.append(float(np.linalg.norm(run(images) - expected) / np.linalg.norm(expected)))
    return differences


def _clouds(seed: int, n: int, h: int, w: int) -> UInt8[np.ndarray, "n 3 h w"]:
    """Return images whose neighbouring pixels are similar, as in photographs."""
    coarse = np.random.default_rng(seed).uniform(0, 255, (n, 3, h // 16 + 2, w // 16 + 2))
    fine = coarse.repeat(16, 2).repeat(16, 3)[:, :, :h, :w]
    return np.round(0.8 * fine + np.random.default_rng(seed + 1).uniform(0, 51, (n, 3, h, w))).astype(np.uint8)
