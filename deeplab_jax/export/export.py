"""Export a checkpoint to a portable file. The file is only written if its output matches the checkpoint's."""

import dataclasses
import importlib.metadata
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import UInt8

from deeplab_jax.api import Segmenter
from deeplab_jax.checkpoints.store import resolve, restore_model, stored_config
from deeplab_jax.config import Config, EvalConfig
from deeplab_jax.errors import CheckpointError, ConfigError, choose
from deeplab_jax.evaluation.inference import evaluation_model
from deeplab_jax.export import loading, stablehlo
from deeplab_jax.export.folding import fold
from deeplab_jax.files import write_atomically
from deeplab_jax.models import DeepLabV3
from deeplab_jax.runtime.canvases import list_standard_canvases

Run = Callable[[np.ndarray], np.ndarray]

# The (number, height, width) of the image batches used to check each exported file. Odd sizes reveal rounding differences.
CHECKED_SIZES = ((1, 97, 129), (2, 64, 100), (1, 230, 300))
# A StableHLO file has CPU programs for the standard canvases of photos with up to this many pixels.
CANVAS_PIXELS = 2**20
# The largest allowed |difference| / |logits|. A different summation order changes the logits by about 1e-6.
LOGITS_TOLERANCE = 1e-4
# The largest allowed share of pixels whose labels differ. Labels can change where two logits are almost equal.
LABELS_TOLERANCE = 1e-3


def export(
    checkpoint: str,
    out: str,
    fmt: str,
    output: stablehlo.Output,
    say: Callable[[str], None] = print,
    *,
    size: tuple[int, int] | None = None,
    opset: int | None = None,
) -> None:
    """Export a checkpoint's network in float32. The exported network processes full images at a single scale.

    Args:
      checkpoint: The checkpoint, in any form that `resolve` accepts.
      out: The file to write. It is only created if the export succeeds.
      fmt: A key of `FORMATS`, such as "onnx", or "stablehlo" for `load_exported`.
      output: The exported network's output, "labels" or "logits".
      say: A function called with each line of the summary.
      size: The height and width of the images, of which there is then one, or None for any number and size.
      opset: The ONNX operator set, or None for the default.

    Raises:
      CheckpointError: The checkpoint is missing or unreadable, or the file's output does not match the checkpoint's.
      ConfigError: The format does not exist, a package is missing, or `out` cannot be written.
    """
    make, load = choose(fmt, FORMATS, "--format")
    if size and min(size) < 1:
        raise ConfigError(f"`--size` (={size}) cannot be used. Give a positive height and width.")
    if fmt == "onnx":
        _require_onnx()
    _check_opset(fmt, opset)
    step = str(resolve(checkpoint))
    say(f"Checkpoint: {step}")
    stored = stored_config(step)
    variables = restore_model(step, like=stored, given=checkpoint)
    config = _simplify_protocol(stored, say)
    metadata = _metadata(config, step, output)
    network = _build_network(config)
    options: dict[str, Any] = {"opset": opset} if opset else {}
    if fmt == "stablehlo" and not size:
        options["canvases"] = list_standard_canvases(CANVAS_PIXELS)
        say(f"Exporting the programs of {len(options['canvases'])} canvases for CPUs. This can take a few minutes.")
    content = make(network, fold(variables, network), output, metadata, size, **options)
    checked = ((1, *size),) if size else CHECKED_SIZES
    with jax.default_matmul_precision("highest"):  # by default, GPUs round to TF32
        segmenter = Segmenter(config, jax.device_put(variables))
        differences = [
            difference for run in load(content) for difference in _measure_differences(run, segmenter, output, checked)
        ]
    bound = LOGITS_TOLERANCE if output == "logits" else LABELS_TOLERANCE
    if not all(difference <= bound for difference in differences):  # nan fails too
        shown = " and ".join(f"{difference:.1e}" for difference in differences)
        raise CheckpointError(
            f"{out} (--out) was not written, because its {output} would differ from those of {step} by {shown}. "
            "Try a different --format, or report a bug."
        )
    with write_atomically(epath.Path(out)) as file:
        file.write(content)
    sizes = ", ".join(f"{n} x {h} x {w}" for n, h, w in checked)
    say(
        f"Compared the file's {output} with the checkpoint's for inputs of size {sizes}. "
        f"The largest difference is {max(differences):.1e}."
    )
    shape = f"[1, {config.model.channels}, {size[0]}, {size[1]}]" if size else f"[n, {config.model.channels}, h, w]"
    sizes = "" if size else ", for any n, h and w"
    say(f"Wrote {out} ({len(content) / 2**20:.1f} MiB). It maps uint8 {shape} to {output}{sizes}.")


def _simplify_protocol(config: Config, say: Callable[[str], None]) -> Config:
    """Return the config changed to float32, full images and a single scale. Report any evaluation settings that this drops."""
    plain = EvalConfig(output_stride=config.eval.output_stride)
    protocol = {"window": config.eval.window, "scales": config.eval.scales, "flip": config.eval.flip}
    if any(value != getattr(plain, field) for field, value in protocol.items()):
        values = ", ".join(map(str, protocol.values()))
        say(f"The file ignores eval.window, eval.scales and eval.flip (={values}). It processes the full image once.")
    return dataclasses.replace(config, model=dataclasses.replace(config.model, dtype="float32"), eval=plain)


def _metadata(config: Config, step: str, output: str) -> dict[str, Any]:
    labels = config.labels
    return {
        "labels": labels.name,
        "names": list(labels.names),
        "colors": [list(color) for color in labels.colors],
        "mean": list(config.model.mean),
        "std": list(config.model.std),
        "value_range": list(config.data.value_range),
        "input": f"uint8 [n, {config.model.channels}, h, w]{', RGB' * (config.model.channels == 3)}; normalised inside",
        "output": output,
        "output_stride": evaluation_model(config).config.output_stride,
        "backbone": config.model.backbone,
        "checkpoint": epath.Path(step).name,
        "versions": {name: importlib.metadata.version(name) for name in ("deeplab-jax", "jax", "flax")},
    }


def _build_network(config: Config) -> DeepLabV3:
    """Return the network at the evaluation output stride, without its training-only parts."""
    network = evaluation_model(config)
    return dataclasses.replace(network, config=dataclasses.replace(network.config, aux_head=False, remat=()))


def _make_onnx(*arguments: Any, **options: Any) -> bytes:
    from deeplab_jax.export import onnx  # an optional dependency

    return onnx.serialize(*arguments, **options)


def _load_onnx(content: bytes) -> Run:
    from deeplab_jax.export import onnx

    return onnx.load(content)


def _load_stablehlo(content: bytes) -> list[Run]:
    exported = loading.load(content)
    return [exported, lambda images: np.asarray(exported.run(loading.PROGRAM, images))]


# Maps each format to the functions that create a file's content, and that return all ways to run it.
FORMATS: dict[str, tuple[Callable[..., bytes], Callable[[bytes], list[Run]]]] = {
    "stablehlo": (stablehlo.serialize, _load_stablehlo),
    "onnx": (_make_onnx, lambda content: [_load_onnx(content)]),
}


def _require_onnx() -> None:
    for name in ("onnx", "onnxruntime"):
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"`--format` (=onnx) requires the package {name}. Run `pip install 'deeplab-jax[onnx]'` to install it."
            )


def _check_opset(fmt: str, opset: int | None) -> None:
    if opset is None:
        return
    if fmt != "onnx":
        raise ConfigError(f"`--opset` (={opset}) is only for --format onnx. Omit it.")
    from deeplab_jax.export.onnx import OPSETS

    if opset not in OPSETS:
        raise ConfigError(f"`--opset` (={opset}) is not supported. Use {OPSETS[0]} to {OPSETS[-1]}.")


def _measure_differences(
    run: Run, segmenter: Segmenter, output: stablehlo.Output, sizes: Sequence[tuple[int, int, int]]
) -> list[float]:
    """Return how much the file's output differs from the checkpoint's at each of the (number, height, width) in `sizes`.

    For logits, the difference is |a - b| / |b|. For labels, it is the share of pixels that differ.
    """
    differences = []
    for seed, size in enumerate(sizes):
        images = _make_images(seed, segmenter.config.model.channels, *size)
        if output == "labels":
            differences.append(float(np.mean(run(images) != segmenter.predict(images))))
        else:
            expected = segmenter.logits(images)
            differences.append(float(np.linalg.norm(run(images) - expected) / np.linalg.norm(expected)))
    return differences


def _make_images(seed: int, c: int, n: int, h: int, w: int) -> UInt8[np.ndarray, "n c h w"]:
    """Return random images whose neighbouring pixels are similar, as in photographs."""
    coarse = np.random.default_rng(seed).uniform(0, 255, (n, c, h // 16 + 2, w // 16 + 2))
    fine = coarse.repeat(16, 2).repeat(16, 3)[:, :, :h, :w]
    return np.round(0.8 * fine + np.random.default_rng(seed + 1).uniform(0, 51, (n, c, h, w))).astype(np.uint8)
