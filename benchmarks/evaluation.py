"""Seconds and memory of scoring a batch, ours against torchvision's in PyTorch, in turn.

pip install torch torchvision
python benchmarks/evaluation.py --size 512 1024

From images and labels on the device to confusion counts on the host: the network, logits at the labels' size, their argmax, and
the counts; PyTorch's as in references/segmentation/utils.py. On a GPU: --dtype bfloat16 --compile --repeat 10. TensorFlow is
not needed.
"""

import argparse

import networks
import numpy as np
import side_by_side

# Of the pixels by (label, prediction): where two logits are equal to the last digits either may be the larger one.
BOUNDS = {"float32": {"confusion": 1e-3}, "bfloat16": {"confusion": 1e-1}}


def ours(args: argparse.Namespace) -> side_by_side.Side:
    """The evaluator that `eval.py` and training use."""
    import jax

    from deeplab_jax.evaluation.inference import Evaluator
    from deeplab_jax.runtime.compilation import keep_programs
    from deeplab_jax.runtime.mesh import make_mesh, place, replicated

    keep_programs()
    config = networks.our_config(args)
    mesh = make_mesh(config.mesh)
    evaluator = Evaluator(config, mesh)
    variables = jax.device_put(networks.our_variables(config), replicated(mesh))
    batch = {"image": networks.images(args), "label": networks.labels(args), "valid": np.ones(args.batch, bool)}
    on_device = place(batch, mesh, evaluator.row_unit)

    def run() -> np.ndarray:
        return np.asarray(evaluator(variables, on_device, args.size[0])[1])

    def numbers() -> dict[str, np.ndarray]:
        return {"confusion": run().astype(float)}

    return side_by_side.Side(numbers, run, networks.our_device_peak, networks.our_versions())


def torchvision(args: argparse.Namespace, *, compiled: bool) -> side_by_side.Side:
    """ConfusionMatrix of torchvision's references."""
    import torch

    network = networks.Torch(args, train=False, compiled=compiled)
    image, label = network.image(networks.images(args)), torch.from_numpy(networks.labels(args)).long().to(network.device)

    @torch.inference_mode()
    def run() -> np.ndarray:
        prediction = network.logits(image)["out"].argmax(1)
        known = label < networks.CLASSES
        cells = networks.CLASSES * label[known] + prediction[known]
        return torch.bincount(cells, minlength=networks.CLASSES**2).reshape(networks.CLASSES, -1).cpu().numpy()

    def numbers() -> dict[str, np.ndarray]:
        return {"confusion": run().astype(float)}

    return side_by_side.Side(numbers, run, network.device_peak, network.versions())


if __name__ == "__main__":
    arguments = networks.flags(__doc__, size=(512, 1024), batch=1).parse_args()
    networks.compare("scoring", ours, torchvision, arguments, BOUNDS[arguments.dtype])
