"""Our networks against the references', side by side: python tests/parity/live.py [--write] [NAME ...]

Both get the same random weights and statistics: ours through a weights file and `weights import`. Prints the relative error
|a - b| / |b| of logits, and whether what `weights export` writes loads with strict=True and is bit-identical. --write stores
the references' logits as the golden files of tests/weights/test_logits_parity.py. references.py says what to install.
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
from deeplab_jax.config import ModelConfig
from deeplab_jax.evaluation import inference
from deeplab_jax.models import normalize
from deeplab_jax.weights import transfer

GOLDEN = pathlib.Path(__file__).parent / "golden"
SIZES = ((321, 513), (129, 97))
WIDE = {"torchvision_mobilenetv3": ((97, 641), (129, 97))}  # which a rate of 36 at output stride 16 reaches across
BOUND = 1e-4


def filled(network: torch.nn.Module) -> dict[str, np.ndarray]:
    """The network's weights after it was given those of `fill`."""
    values = fill.fill({name: tuple(value.shape) for name, value in network.state_dict().items()})
    network.load_state_dict({name: torch.from_numpy(value) for name, value in values.items()}, strict=False)
    network.eval()
    return values


def compare(name: str, write: bool) -> bool:
    build, published = references.NETWORKS[name]
    network = build()
    weights = filled(network)
    mean, std = (np.array(value, np.float32) for value in (ModelConfig().mean, ModelConfig().std))
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        save_file(weights, folder / f"{published}.safetensors")
        transfer.import_weights(str(folder / f"{published}.safetensors"), str(folder / "imported"), say=lambda _: None)
        config = stored_config(str(folder / "imported"))
        variables = restore_model(str(folder / "imported"), like=config)
        to = "mmseg" if references.is_mmseg(network) else "torchvision"
        transfer.export_weights(str(folder / "imported"), str(folder / "exported.safetensors"), fmt=to, say=lambda _: None)
        exported = load_file(folder / "exported.safetensors")
    network.load_state_dict({key: torch.from_numpy(value.copy()) for key, value in exported.items()}, strict=True)
    same = all(np.array_equal(exported[key], value) for key, value in weights.items())
    model = inference.evaluation_model(config)
    forward = jax.jit(lambda v, x: model.apply(v, normalize(x, config.model.mean, config.model.std), train=False))
    good = same
    for height, width in WIDE.get(name, SIZES):
        images = fill.image(height, width)
        expected = references.outputs(network, images, mean, std)
        ours = forward(variables, images)
        errors = steps.errors({key: np.asarray(getattr(ours, key)) for key in expected}, expected)
        good &= max(errors.values()) <= BOUND and (ours.aux is not None) == ("aux" in expected)
        shown = "  ".join(f"{key} {error:.1e}" for key, error in errors.items())
        scale = float(np.abs(expected["logits"]).max())
        print(f"{name:24} {height}x{width}  {shown}  (largest logit {scale:.3g})", flush=True)
        if write:
            _write_golden(name, published, network, (height, width), expected)
    print(f"{name:24} export loads with strict=True, bit-identical: {same}", flush=True)
    return good


def _write_golden(
    name: str, published: str, network: torch.nn.Module, size: tuple[int, int], expected: dict[str, np.ndarray]
) -> None:
    """Names and shapes of the state dict, and every third logit in either direction."""
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
