"""Our backbones' features against the references': python tests/parity/backbones.py [--write] [NAME ...]

Both get the same random weights and statistics, ours through `weights import`, and run at output stride 32, where no
reference dilates. Prints the relative error |a - b| / |b|. --write stores the references' features as the golden files of
tests/weights/test_backbone_parity.py. Needs timm, and what references.py says.
"""

import argparse
import sys
from collections.abc import Callable

import features
import live
import numpy as np
import references
import torch

BOUND = 1e-4


def timm_network(name: str) -> torch.nn.Module:
    references.import_torchvision()  # which timm imports
    import timm

    return timm.create_model(name)


def torchvision_network(name: str) -> torch.nn.Module:
    references.import_torchvision()
    from torchvision.models import get_model

    return get_model(name, weights=None)


# Name -> how to build it, and the modules that give each of `features.KINDS`.
NETWORKS: dict[str, tuple[Callable[[], torch.nn.Module], tuple[str, str, str]]] = {
    "timm_resnet18d": (lambda: timm_network("resnet18d"), ("layer1", "layer3", "layer4")),
    "timm_resnet50d": (lambda: timm_network("resnet50d"), ("layer1", "layer3", "layer4")),
    "torchvision_resnext50_32x4d": (lambda: torchvision_network("resnext50_32x4d"), ("layer1", "layer3", "layer4")),
    "torchvision_mobilenetv3": (lambda: torchvision_network("mobilenet_v3_large"), ("features.3", "features.4", "features.16")),
}


def of_torch(network: torch.nn.Module, modules: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The features of `features.images`, NHWC."""
    found = {}
    for kind, module in zip(features.KINDS, modules, strict=True):
        network.get_submodule(module).register_forward_hook(lambda _, __, y, kind=kind: found.update({kind: y}))
    with torch.no_grad():
        network(torch.from_numpy(features.images().transpose(0, 3, 1, 2).copy()))
    return {kind: y.numpy().transpose(0, 2, 3, 1) for kind, y in found.items()}


def compare(name: str, write: bool) -> bool:
    build, modules = NETWORKS[name]
    network = build()
    weights = live.filled(network)
    expected = of_torch(network, modules)
    found = features.ours(weights)
    errors = {kind: float(np.linalg.norm(found[kind] - y) / np.linalg.norm(y)) for kind, y in expected.items()}
    print(f"{name:24}", *(f"{kind} {error:.1e}" for kind, error in errors.items()), flush=True)
    if write:
        features.GOLDEN.mkdir(exist_ok=True)
        names, shapes = zip(*((key, " ".join(map(str, x.shape))) for key, x in weights.items()), strict=True)
        sampled = {kind: features.sample(y) for kind, y in expected.items()}
        np.savez_compressed(features.GOLDEN / f"{name}.npz", names=np.array(names), shapes=np.array(shapes), **sampled)
    return max(errors.values()) <= BOUND


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(NETWORKS))
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    results = [compare(name, arguments.write) for name in arguments.names]
    sys.exit(0 if all(results) else 1)
