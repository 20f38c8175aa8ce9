"""Compare how much time and memory this package and torchvision need to evaluate a batch.

pip install torch torchvision
python benchmarks/evaluation.py --size 512 1024

The measurement starts with the images and labels on the device and ends with the confusion counts on the host. It covers
running the network, resizing the logits to the label size, taking the argmax and counting. The PyTorch version counts the
same way as torchvision's references/segmentation/utils.py. On a GPU, use --dtype bfloat16 --compile --repeat 10. TensorFlow
is not needed.
"""

import argparse

import networks
import numpy as np
import side_by_side

# Bounds on the confusion counts' relative error. Where a pixel's two largest logits are almost equal, either class can win.
BOUNDS = {"float32": {"confusion": 1e-3}, "bfloat16": {"confusion": 1e-1}}


def build_ours(args: argparse.Namespace) -> side_by_side.Side:
    """Build an evaluation that uses this package's evaluator, like `eval.py` and training."""
    import jax

    from deeplab_jax.evaluation.inference import Evaluator
    from deeplab_jax.runtime.compilation import enable_compilation_cache
    from deeplab_jax.runtime.mesh import make_mesh, place, replicated_sharding

    enable_compilation_cache()
    config = networks.our_config(args)
    mesh = make_mesh(config.mesh)
    evaluator = Evaluator(config, mesh)
    variables = jax.device_put(networks.our_variables(config), replicated_sharding(mesh))
    batch = {"image": networks.random_images(args), "label": networks.random_labels(args), "valid": np.ones(args.batch, bool)}
    on_device = place(batch, mesh, evaluator.row_unit)

    def run() -> np.ndarray:
        return np.asarray(evaluator(variables, on_device, args.size[0])[1].confusion)

    def numbers() -> dict[str, np.ndarray]:
        return {"confusion": run().astype(float)}

    return side_by_side.Side(numbers, run, networks.our_device_peak, networks.our_versions())


def build_torchvision(args: argparse.Namespace, *, compiled: bool) -> side_by_side.Side:
    """Build an evaluation in PyTorch that counts like the ConfusionMatrix class in torchvision's references."""
    import torch

    network = networks.Torch(args, train=False, compiled=compiled)
    image, label = (
        network.image(networks.random_images(args)),
        torch.from_numpy(networks.random_labels(args)).long().to(network.device),
    )

    @torch.inference_mode()
    def run() -> np.ndarray:
        prediction = network.logits(image)["out"].argmax(1)
        is_labelled = label < networks.CLASSES
        cells = networks.CLASSES * label[is_labelled] + prediction[is_labelled]
        return torch.bincount(cells, minlength=networks.CLASSES**2).reshape(networks.CLASSES, -1).cpu().numpy()

    def numbers() -> dict[str, np.ndarray]:
        return {"confusion": run().astype(float)}

    return side_by_side.Side(numbers, run, network.device_peak, network.versions())


if __name__ == "__main__":
    arguments = networks.build_parser(__doc__, size=(512, 1024), batch=1).parse_args()
    networks.compare("evaluation", build_ours, build_torchvision, arguments, BOUNDS[arguments.dtype])
