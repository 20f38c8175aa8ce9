"""Seconds and memory of a training step, ours against torchvision's in PyTorch, in turn.

pip install torch torchvision
python benchmarks/train_step.py --batch 2 --size 257 257

Torchvision's recipe (references/segmentation/train.py): cross-entropy at the labels' size over the pixels that are not 255, the
auxiliary head's at 0.5, SGD with momentum and weight decay. Both start from the same weights, from uint8 images and labels on
the device. On a GPU: --dtype bfloat16 --compile --repeat 10. TensorFlow is not needed.
"""

import argparse

import networks
import numpy as np
import side_by_side

# Of the first step's loss. Gradients of random weights differ by percents between any two float32 implementations, where an
# activation within rounding of 0 passes its own in one alone: tests/parity/train_step.py compares them in float64.
BOUNDS = {"float32": {"loss": 1e-4}, "bfloat16": {"loss": 2e-2}}


def ours(args: argparse.Namespace) -> side_by_side.Side:
    """The compiled step that `train.py` runs, its figures read after every step as there."""
    import jax
    import jax.numpy as jnp

    from deeplab_jax.models import DeepLabV3
    from deeplab_jax.runtime.compilation import compile_program, keep_programs
    from deeplab_jax.runtime.mesh import make_mesh, place, replicated
    from deeplab_jax.train.optimizer import make_optimizer
    from deeplab_jax.train.state import TrainState
    from deeplab_jax.train.step import compile_train_step

    keep_programs()
    config = networks.our_config(args)
    mesh = make_mesh(config.mesh)
    model, optimizer = DeepLabV3(config.model, config.labels.num_classes), make_optimizer(config.optim, 10_000)
    step = compile_train_step(mesh, config=config, model=model, optimizer=optimizer)
    variables = jax.device_put(networks.our_variables(config), replicated(mesh))
    zero = jax.device_put(jnp.zeros((), jnp.int32), replicated(mesh))
    momentum = jax.device_put(optimizer.init(variables["params"]), replicated(mesh))
    state = [TrainState(step=zero, skipped=jnp.copy(zero), opt_state=momentum, **variables)]
    del variables, momentum
    batch = {"image": networks.images(args), "label": networks.labels(args), "valid": np.ones(args.batch, bool)}
    on_device = place(batch, mesh, config.model.output_stride)
    step = compile_program(step, state[0], on_device)

    def run() -> dict[str, float]:
        state[0], scalars = step(state[0], on_device)
        return {name: float(value) for name, value in scalars.items()}

    def numbers() -> dict[str, np.ndarray]:
        return {"loss": np.array(run()["loss"])}

    return side_by_side.Side(numbers, run, networks.our_device_peak, networks.our_versions())


def torchvision(args: argparse.Namespace, *, compiled: bool) -> side_by_side.Side:
    """The loss is read after every step, as training does that logs it."""
    import torch
    from torch.nn.functional import cross_entropy

    network = networks.Torch(args, train=True, compiled=compiled)
    image, label = network.image(networks.images(args)), torch.from_numpy(networks.labels(args)).long().to(network.device)
    sgd = torch.optim.SGD(network.network.parameters(), lr=0.0025, momentum=0.9, weight_decay=1e-4)

    def run() -> float:
        found = network.logits(image)
        losses = {name: cross_entropy(logits.float(), label, ignore_index=255) for name, logits in found.items()}
        loss = losses["out"] + 0.5 * losses["aux"]
        sgd.zero_grad(set_to_none=True)
        loss.backward()
        sgd.step()
        return float(loss.detach())

    def numbers() -> dict[str, np.ndarray]:
        return {"loss": np.array(run())}

    return side_by_side.Side(numbers, run, network.device_peak, network.versions())


if __name__ == "__main__":
    arguments = networks.flags(__doc__, size=(512, 1024), batch=2).parse_args()
    networks.compare("training step", ours, torchvision, arguments, BOUNDS[arguments.dtype])
