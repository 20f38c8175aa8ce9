"""Compare our backbone features with those from the reference implementations.

Usage: python tests/parity/backbones.py [--write] [NAME ...]

Both networks get the same random weights and statistics, which our network loads as pretrained weights. Both run at output
stride 32, unless the name ends in another one. The script prints the relative error |a - b| / |b|. With --write, it
stores the reference features as golden files for tests/weights/test_backbone_parity.py. It needs timm and the packages listed
in references.py.
"""

import argparse
import functools
import sys
from collections.abc import Callable
from typing import Any

import features
import live
import numpy as np
import references
import torch

MAX_ERROR = 1e-4


def make_timm_network(name: str, **settings: Any) -> torch.nn.Module:
    references.import_torchvision()  # timm imports torchvision
    import timm

    return timm.create_model(name, **settings)


def make_torchvision_network(name: str) -> torch.nn.Module:
    references.import_torchvision()
    from torchvision.models import get_model

    return get_model(name, weights=None)


STAGES = ("layer1", "layer3", "layer4")  # of a ResNet

# Maps each name to the reference network's builder and the modules whose outputs correspond to `features.KINDS`.
NETWORKS: dict[str, tuple[Callable[[], torch.nn.Module], tuple[str, str, str]]] = {
    **{f"timm_{name}": (functools.partial(make_timm_network, name), STAGES) for name in ("resnet18d", "resnet50d")},
    **{
        f"torchvision_{name}": (functools.partial(make_torchvision_network, name), STAGES)
        for name in ("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2")
    },
    # The features at stride 4 are those that the last convolution in a block reads.
    **{
        f"timm_xception{depth}{suffix}": (
            functools.partial(make_timm_network, f"xception{depth}", **settings),
            (f"blocks.{low}.stack.act3", f"blocks.{last - 2}", f"blocks.{last}"),
        )
        for depth, low, last, suffix, settings in (
            (41, 1, 12, "", {}),
            (65, 1, 20, "", {}),
            (65, 1, 20, "_os16", {"output_stride": 16}),
            (65, 1, 20, "_os8", {"output_stride": 8}),
            (71, 2, 22, "", {}),
        )
    },
    **{
        f"timm_{name}": (functools.partial(make_timm_network, name), ("blocks.1", "blocks.4", "blocks.6"))
        for name in (*(f"tf_efficientnet_lite{i}" for i in (0, 1, 2)), "efficientnet_lite0")
    },
    "timm_mobilenetv2": (lambda: make_timm_network("mobilenetv2_100"), ("blocks.1", "blocks.4", "bn2")),
    "torchvision_mobilenetv2": (
        lambda: make_torchvision_network("mobilenet_v2"),
        ("features.3", "features.13", "features.18"),
    ),
    "torchvision_mobilenetv3": (
        lambda: make_torchvision_network("mobilenet_v3_large"),
        ("features.3", "features.4", "features.16"),
    ),
}


def compute_reference_features(network: torch.nn.Module, modules: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Return the reference features for the test image as a dict keyed by kind, NHWC."""
    outputs = {}
    for kind, module in zip(features.KINDS, modules, strict=True):
        network.get_submodule(module).register_forward_hook(lambda _, __, y, kind=kind: outputs.update({kind: y}))
    with torch.no_grad():
        network(torch.from_numpy(features.make_images().transpose(0, 3, 1, 2).copy()))
    return {kind: y.numpy().transpose(0, 2, 3, 1) for kind, y in outputs.items()}


def compare(name: str, write: bool) -> bool:
    """Compare one backbone with its reference, and return whether all errors are within tolerance."""
    build, modules = NETWORKS[name]
    network = build()
    weights = live.fill_network(network)
    expected = compute_reference_features(network, modules)
    actual = features.compute_features(weights, name)
    errors = {kind: float(np.linalg.norm(actual[kind] - y) / np.linalg.norm(y)) for kind, y in expected.items()}
    print(f"{name:24}", *(f"{kind} {error:.1e}" for kind, error in errors.items()), flush=True)
    if write:
        features.GOLDEN.mkdir(exist_ok=True)
        names, shapes = zip(*((key, " ".join(map(str, x.shape))) for key, x in weights.items()), strict=True)
        samples = {kind: features.sample(y) for kind, y in expected.items()}
        np.savez_compressed(features.GOLDEN / f"{name}.npz", names=np.array(names), shapes=np.array(shapes), **samples)
    return max(errors.values()) <= MAX_ERROR


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(NETWORKS))
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    results = [compare(name, arguments.write) for name in arguments.names]
    sys.exit(0 if all(results) else 1)
