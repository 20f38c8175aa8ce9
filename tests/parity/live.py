"""Compare our networks' logits with those from the reference implementations.

Usage: python tests/parity/live.py [--write] [NAME ...]

Both networks get the same random weights and statistics, which our network loads from a weights file with `weights import`. The
script prints the relative error |a - b| / |b| for the logits. It also checks that the weights written by `weights export` load
into the reference with strict=True and are bit-identical. With --write, it stores the reference logits as golden files for
tests/weights/test_logits_parity.py. The required packages are listed in references.py.
"""

import argparse
import pathlib
import sys
import tempfile

import fill
import jax
import numpy as np
import references
import steps
import torch
from safetensors.numpy import load_file, save_file

from deeplab_jax.checkpoints.store import restore_model, stored_config
from deeplab_jax.evaluation import inference
from deeplab_jax.models import normalize
from deeplab_jax.weights import transfer

GOLDEN = pathlib.Path(__file__).parent / "golden"
SIZES = ((321, 513), (129, 97))
# Exceptions to `SIZES`. torchvision's MobileNetV3 has rate 36 at output stride 16, so its left and right taps only read padding
# unless the image is wide. The logits of DeepLabV3+ have stride 4, so its images are smaller to keep the golden files small.
OTHER_SIZES = {"torchvision_mobilenetv3": ((97, 641), (129, 97))}
PLUS_SIZES = ((65, 641), (129, 97))
# segmentation_models.pytorch's DeepLabV3Plus only takes multiples of its output stride.
SMP_PLUS_SIZES = ((80, 656), (144, 112))
MAX_ERROR = 1e-4


def fill_network(network: torch.nn.Module) -> dict[str, np.ndarray]:
    """Load the weights from fill.py into a network, set the network to evaluation mode and return the weights."""
    values = fill.fill({name: tuple(value.shape) for name, value in network.state_dict().items()})
    network.load_state_dict({name: torch.from_numpy(value) for name, value in values.items()}, strict=False)
    network.eval()
    return values


def compare(name: str, write: bool) -> bool:
    """Compare one network with its reference, and return whether all errors are within tolerance and the export is exact."""
    build, published = references.NETWORKS[name]
    network = build()
    weights = fill_network(network)
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        if hasattr(network, "save_pretrained"):  # the settings come from its config.json
            source = folder / published
            network.save_pretrained(source)
        else:
            source = folder / f"{published}.safetensors"
            save_file(weights, source)
        transfer.import_weights(str(source), str(folder / "imported"), say=lambda _: None)
        config = stored_config(str(folder / "imported"))
        variables = restore_model(str(folder / "imported"), like=config)
        fmt = name.partition("_")[0]
        transfer.export_weights(str(folder / "imported"), str(folder / "exported.safetensors"), fmt=fmt, say=lambda _: None)
        exported = load_file(folder / "exported.safetensors")
    mean, std = (np.array(value, np.float32) for value in (config.model.mean, config.model.std))
    network.load_state_dict({key: torch.from_numpy(value.copy()) for key, value in exported.items()}, strict=True)
    used = {key: value for key, value in weights.items() if not key.startswith(fill.UNUSED)}
    is_identical = all(np.array_equal(exported[key], value) for key, value in used.items())
    model = inference.evaluation_model(config)
    forward = jax.jit(lambda v, x: model.apply(v, normalize(x, config.model.mean, config.model.std), train=False))
    is_good = is_identical
    for height, width in _sizes(name):
        images = fill.image(height, width)
        expected = references.compute_outputs(network, images, mean, std)
        actual = forward(variables, images)
        errors = steps.relative_errors({key: np.asarray(getattr(actual, key)) for key in expected}, expected)
        is_good &= max(errors.values()) <= MAX_ERROR and (actual.aux is not None) == ("aux" in expected)
        shown = "  ".join(f"{key} {error:.1e}" for key, error in errors.items())
        scale = float(np.abs(expected["logits"]).max())
        print(f"{name:24} {height}x{width}  relative error: {shown}  (largest logit {scale:.3g})", flush=True)
        if write:
            _write_golden(name, published, network, (height, width), expected)
    print(f"{name:24} the export loads with strict=True; bit-identical: {is_identical}", flush=True)
    return is_good


def _sizes(name: str) -> tuple[tuple[int, int], ...]:
    if name.startswith("smp_plus"):
        return SMP_PLUS_SIZES
    return OTHER_SIZES.get(name, PLUS_SIZES if "_plus_" in name else SIZES)


def _write_golden(
    name: str, published: str, network: torch.nn.Module, size: tuple[int, int], expected: dict[str, np.ndarray]
) -> None:
    """Write a golden file with the state dict's names and shapes, and every third row and column of the logits."""
    state = {key: value.shape for key, value in network.state_dict().items()}
    GOLDEN.mkdir(exist_ok=True)
    np.savez_compressed(
        GOLDEN / f"{name}_{size[0]}x{size[1]}.npz",
        published=published,
        names=np.array(list(state)),
        shapes=np.array([" ".join(map(str, shape)) for shape in state.values()]),
        **{key: value[:, ::3, ::3] for key, value in expected.items()},
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(references.NETWORKS))
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    results = [compare(name, arguments.write) for name in arguments.names]
    sys.exit(0 if all(results) else 1)
