"""Compare how much time and memory this package and torchvision need for a prediction.

pip install torch torchvision
python benchmarks/inference.py --size 1024 2048
python benchmarks/inference.py --size 513 513 --output logits

--output is either "labels" (the class of each pixel, as returned by `predict`) or "logits" (resized to the image size).
On a GPU, use --dtype bfloat16 --compile --repeat 10. TensorFlow is not needed.
"""

import argparse
from collections.abc import Callable
from typing import Any

import networks
import numpy as np
import side_by_side

# Bounds on the logits' relative error, and on the share of pixels whose labels differ. Labels can differ where a pixel's two
# largest logits are almost equal.
BOUNDS = {
    "float32": {"labels": 1e-3, "logits": 1e-4},
    "bfloat16": {"labels": 5e-2, "logits": 3e-2},
}


def build_ours(args: argparse.Namespace) -> side_by_side.Side:
    """Build our inference with torchvision's network."""
    return build_program(networks.our_config(args), networks.our_variables, args)


def build_program(config: Any, make_variables: Callable[[Any], dict[str, Any]], args: argparse.Namespace) -> side_by_side.Side:
    """Build this package's inference from the functions behind `load(...).predict`.

    Args:
      config: The network's config.
      make_variables: Returns the variables {"params", "batch_stats"} for the config.
      args: The program's flags.
    """
    import jax

    from deeplab_jax.evaluation import inference
    from deeplab_jax.runtime.compilation import compile_program, enable_compilation_cache

    enable_compilation_cache()
    variables = jax.device_put(make_variables(config))
    images = jax.device_put(networks.random_images(args))
    function = {"labels": inference.predict, "logits": inference.logits}[args.output]
    compute = compile_program(inference.jit_by_config(function, config), variables, images)
    return side_by_side.Side(
        numbers=lambda: {args.output: np.asarray(compute(variables, images))},
        run=lambda: jax.block_until_ready(compute(variables, images)),
        device_peak=networks.our_device_peak,
        versions=networks.our_versions(),
    )


def build_torchvision(args: argparse.Namespace, *, compiled: bool) -> side_by_side.Side:
    """Build torchvision's inference. The logits are the module's output, and the labels are the argmax of the logits."""
    import torch

    network = networks.Torch(args, train=False, compiled=compiled)
    image = network.image(networks.random_images(args))

    @torch.inference_mode()
    def compute() -> Any:
        logits = network.logits(image)["out"]
        result = logits.argmax(1) if args.output == "labels" else logits
        network.synchronize()
        return result

    def numbers() -> dict[str, np.ndarray]:
        result = compute()
        if args.output == "labels":
            return {"labels": result.to(torch.uint8).cpu().numpy()}
        return {args.output: result.float().permute(0, 2, 3, 1).cpu().numpy()}

    return side_by_side.Side(numbers, compute, network.device_peak, network.versions())


if __name__ == "__main__":
    parser = networks.build_parser(__doc__, size=(1024, 2048), batch=1)
    parser.add_argument("--output", default="labels", choices=("labels", "logits"))
    arguments = parser.parse_args()
    bounds = {arguments.output: BOUNDS[arguments.dtype][arguments.output]}
    networks.compare(arguments.output, build_ours, build_torchvision, arguments, bounds)
