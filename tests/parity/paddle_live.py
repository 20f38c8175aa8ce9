"""Compare our networks' logits with PaddleSeg's.

Usage: python tests/parity/paddle_live.py [--write] [NAME ...]

The checks are those of live.py. Weights are exchanged in files that paddle.save and `weights export` write. The script needs
this package, a checkout of PaddlePaddle/PaddleSeg on PYTHONPATH, and:

  pip install --no-deps paddlepaddle==3.3.1 scikit-image lazy_loader imageio
  pip install httpx opt_einsum decorator networkx protobuf scikit-learn scipy filelock prettytable pyyaml tqdm
  pip install opencv-python-headless "numpy<2.4"
"""

import argparse
import pathlib
import sys
import tempfile
from typing import Any, NamedTuple

import fill
import jax
import numpy as np
import paddle
import paddleseg.models

from deeplab_jax.checkpoints.store import restore_model, stored_config
from deeplab_jax.evaluation import inference
from deeplab_jax.models import normalize
from deeplab_jax.weights import transfer

GOLDEN = pathlib.Path(__file__).parent / "golden"
SIZES = ((129, 97), (65, 641))
MAX_ERROR = 1e-5
GRID = (1, 2, 4)  # in all of PaddleSeg's configurations


class Network(NamedTuple):
    """A network of PaddleSeg, and the name of the folder with its weights, from which settings are read."""

    name: str
    depth: int
    output_stride: int
    multi_grid: tuple[int, ...]
    align_corners: bool
    folder: str


def _published(depth: int, plus: bool, stride: int, recipe: str = "1024x512_80k") -> Network:
    name = "DeepLabV3P" if plus else "DeepLabV3"
    return Network(name, depth, stride, GRID, "769" in recipe, f"{name.lower()}_resnet{depth}_os{stride}_cityscapes_{recipe}")


NETWORKS = {
    **{
        f"paddleseg_{'plus_' if plus else ''}r{depth}_os{stride}": _published(depth, plus, stride)
        for depth in (50, 101)
        for plus in (False, True)
        for stride in (8, 16)
    },
    "paddleseg_plus_r101_769": _published(101, True, 8, "769x769_80k"),
    "paddleseg_plus_r50_plain": Network("DeepLabV3P", 50, 8, (1, 1, 1), False, "output"),
}


def make_network(settings: Network) -> Any:
    backbone = getattr(paddleseg.models, f"ResNet{settings.depth}_vd")(
        output_stride=settings.output_stride, multi_grid=settings.multi_grid
    )
    rates = tuple(rate * 8 // settings.output_stride for rate in (12, 24, 36))
    indices = (0, 3) if settings.name == "DeepLabV3P" else (3,)
    build = getattr(paddleseg.models, settings.name)
    return build(19, backbone, indices, (1, *rates), 256, align_corners=settings.align_corners)


def compare(name: str, write: bool) -> bool:
    """Compare one network with its reference, and return whether all errors are within tolerance and the export is exact."""
    settings = NETWORKS[name]
    network = make_network(settings)
    network.eval()
    weights = fill.fill({key: tuple(value.shape) for key, value in network.state_dict().items()})
    network.set_state_dict(weights)
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        paddle.save(network.state_dict(), str(folder / settings.folder / "model.pdparams"))
        imported = str(folder / "imported")
        transfer.import_weights(str(folder / settings.folder / "model.pdparams"), imported, say=lambda _: None)
        config = stored_config(imported)
        variables = restore_model(imported, like=config)
        transfer.export_weights(imported, str(folder / "exported.pdparams"), fmt="paddleseg", say=lambda _: None)
        exported = paddle.load(str(folder / "exported.pdparams"))
    loaded = make_network(settings)
    loaded.eval()
    missing, unexpected = loaded.set_state_dict(exported)
    state = loaded.state_dict()
    is_identical = state.keys() == weights.keys() and all(np.array_equal(state[key].numpy(), x) for key, x in weights.items())
    is_good = is_identical and not missing and not unexpected
    model = inference.evaluation_model(config)
    forward = jax.jit(lambda v, x: model.apply(v, normalize(x, config.model.mean, config.model.std), train=False))
    for height, width in SIZES:
        images = fill.image(height, width)
        x = paddle.to_tensor(((images.astype(np.float32) / 255 - 0.5) / 0.5).transpose(0, 3, 1, 2).copy())
        with paddle.no_grad():
            expected = network.head(network.backbone(x))[0].numpy().transpose(0, 2, 3, 1)
        actual = np.asarray(forward(variables, images).logits)
        error = float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))
        is_good &= error <= MAX_ERROR
        scale = float(np.abs(expected).max())
        print(f"{name:26} {height}x{width}  relative error: logits {error:.1e}  (largest logit {scale:.3g})", flush=True)
        if write:
            np.savez_compressed(
                GOLDEN / f"{name}_{height}x{width}.npz",
                published=settings.folder,
                names=np.array(list(weights)),
                shapes=np.array([" ".join(map(str, value.shape)) for value in weights.values()]),
                logits=expected[:, ::3, ::3],
            )
    print(f"{name:26} missing: {missing}, unexpected: {unexpected}; bit-identical: {is_identical}", flush=True)
    return is_good


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(NETWORKS))
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    results = [compare(name, arguments.write) for name in arguments.names]
    sys.exit(0 if all(results) else 1)
