"""Seconds and memory of a prediction, ours against torchvision's in PyTorch, in turn.

pip install torch torchvision
python benchmarks/inference.py --size 1024 2048
python benchmarks/inference.py --size 513 513 --output logits

--output: "labels", a class for each pixel of the image, as `predict` gives them, or "logits" at the image's size. On a GPU:
--dtype bfloat16 --compile --repeat 10. TensorFlow is not needed.
"""

import argparse
from typing import Any

import networks
import numpy as np
import side_by_side

# Of logits, the relative error; of labels, the share of pixels that differ where two logits are equal to the last digits.
BOUNDS = {
    "float32": {"labels": 1e-3, "logits": 1e-4},
    "bfloat16": {"labels": 5e-2, "logits": 3e-2},
}


def ours(args: argparse.Namespace) -> side_by_side.Side:
    """Through the same functions as `load(...).predict`."""
    import jax

    from deeplab_jax.evaluation import inference
    from deeplab_jax.runtime.compilation import compile_program, keep_programs

    keep_programs()
    config = networks.our_config(args)
    variables = jax.device_put(networks.our_variables(config))
    images = jax.device_put(networks.images(args))
    function = {"labels": inference.predict, "logits": inference.logits}[args.output]
    compute = compile_program(inference.jit_by_config(function, config), variables, images)
    return side_by_side.Side(
        numbers=lambda: {args.output: np.asarray(compute(variables, images))},
        run=lambda: jax.block_until_ready(compute(variables, images)),
        device_peak=networks.our_device_peak,
        versions=networks.our_versions(),
    )


def torchvision(args: argparse.Namespace, *, compiled: bool) -> side_by_side.Side:
    """The module's own output for "logits"; "labels" is its argmax."""
    import torch

    network = networks.Torch(args, train=False, compiled=compiled)
    image = network.image(networks.images(args))

    @torch.inference_mode()
    def compute() -> Any:
        logits = network.logits(image)["out"]
        found = logits.argmax(1) if args.output == "labels" else logits
        network.synchronize()
        return found

    def numbers() -> dict[str, np.ndarray]:
        found = compute()
        if args.output == "labels":
            return {"labels": found.to(torch.uint8).cpu().numpy()}
        return {args.output: found.float().permute(0, 2, 3, 1).cpu().numpy()}

    return side_by_side.Side(numbers, compute, network.device_peak, network.versions())


if __name__ == "__main__":
    parser = networks.flags(__doc__, size=(1024, 2048), batch=1)
    parser.add_argument("--output", default="labels", choices=("labels", "logits"))
    arguments = parser.parse_args()
    bounds = {arguments.output: BOUNDS[arguments.dtype][arguments.output]}
    networks.compare(arguments.output, ours, torchvision, arguments, bounds)
