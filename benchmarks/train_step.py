"""Compare how much time and memory this package and torchvision need for a training step.

pip install torch torchvision
python benchmarks/train_step.py --batch 2 --size 257 257

Both sides follow torchvision's recipe (references/segmentation/train.py). The loss is the cross-entropy at label size
plus 0.5 times the auxiliary head's loss. Pixels labelled 255 are ignored. The optimizer is SGD with momentum and weight
decay. Both sides start from the same weights, with uint8 images and labels already on the device. On a GPU, use --dtype
bfloat16 --compile --repeat 10. TensorFlow is not needed.
"""

import argparse
from collections.abc import Callable
from typing import Any

import networks
import numpy as np
import side_by_side

# Bounds on the relative error of the first step's loss. Gradients are not compared here, because with random weights, they
# differ by several percent between any two float32 implementations: an activation close to 0 can round to either side of the
# ReLU threshold, so the ReLU passes the gradient in only one of them. tests/parity/train_step.py compares the gradients in
# float64 instead.
BOUNDS = {"float32": {"loss": 1e-4}, "bfloat16": {"loss": 2e-2}}


def build_ours(args: argparse.Namespace) -> side_by_side.Side:
    """Return our training step for torchvision's network."""
    return build_step(networks.our_config(args), networks.our_variables, args)


def build_step(config: Any, make_variables: Callable[[Any], dict[str, Any]], args: argparse.Namespace) -> side_by_side.Side:
    """Return the training step that `train.py` compiles. Like `train.py`, it reads the scalars after every step.

    Args:
      config: The run's config.
      make_variables: Returns the initial {"params", "batch_stats"} for the config.
      args: The program's flags.
    """
    import jax
    import jax.numpy as jnp

    from deeplab_jax.models import DeepLabV3
    from deeplab_jax.runtime.compilation import compile_program, enable_compilation_cache
    from deeplab_jax.runtime.mesh import make_mesh, place, replicated_sharding
    from deeplab_jax.training.optimizer import make_optimizer
    from deeplab_jax.training.state import TrainState
    from deeplab_jax.training.step import compile_train_step

    enable_compilation_cache()
    mesh = make_mesh(config.mesh)
    model, optimizer = DeepLabV3(config.model, config.labels.num_classes), make_optimizer(config.optim, 10_000)
    step = compile_train_step(mesh, config=config, model=model, optimizer=optimizer)
    variables = jax.device_put(make_variables(config), replicated_sharding(mesh))
    zero = jax.device_put(jnp.zeros((), jnp.int32), replicated_sharding(mesh))
    momentum = jax.device_put(optimizer.init(variables["params"]), replicated_sharding(mesh))
    state = [TrainState(step=zero, skipped=jnp.copy(zero), opt_state=momentum, **variables)]
    del variables, momentum
    batch = {"image": networks.random_images(args), "label": networks.random_labels(args), "valid": np.ones(args.batch, bool)}
    on_device = place(batch, mesh, config.model.output_stride)
    step = compile_program(step, state[0], on_device)

    def run() -> dict[str, float]:
        state[0], scalars = step(state[0], on_device)
        return {name: float(value) for name, value in scalars.items()}

    def numbers() -> dict[str, np.ndarray]:
        return {"loss": np.array(run()["loss"])}

    return side_by_side.Side(numbers, run, networks.our_device_peak, networks.our_versions())


def build_torchvision(
    args: argparse.Namespace, *, compiled: bool, make_network: Callable[[argparse.Namespace], Any] | None = None
) -> side_by_side.Side:
    """Return PyTorch's training step. It reads the loss after every step, as a training loop with logging does.

    Args:
      args: The program's flags.
      compiled: Whether to use torch.compile.
      make_network: Builds a network other than the one that the flags describe.
    """
    import torch
    from torch.nn.functional import cross_entropy

    network = networks.Torch(args, train=True, compiled=compiled, make_network=make_network)
    image, label = (
        network.image(networks.random_images(args)),
        torch.from_numpy(networks.random_labels(args)).long().to(network.device),
    )
    sgd = torch.optim.SGD(network.network.parameters(), lr=0.0025, momentum=0.9, weight_decay=1e-4)

    def run() -> float:
        outputs = network.logits(image)
        losses = {name: cross_entropy(logits.float(), label, ignore_index=255) for name, logits in outputs.items()}
        loss = losses["out"] + 0.5 * losses["aux"]
        sgd.zero_grad(set_to_none=True)
        loss.backward()
        sgd.step()
        return float(loss.detach())

    def numbers() -> dict[str, np.ndarray]:
        return {"loss": np.array(run())}

    return side_by_side.Side(numbers, run, network.device_peak, network.versions())


if __name__ == "__main__":
    arguments = networks.build_parser(__doc__, size=(512, 1024), batch=2).parse_args()
    networks.compare("training step", build_ours, build_torchvision, arguments, BOUNDS[arguments.dtype])
