"""Compare five training steps in our implementation with the same steps in PyTorch.

Usage: python tests/parity/train_step.py [--write] [NAME ...]

The recipe is torchvision's (references/segmentation/train.py): SGD with momentum 0.9, weight decay 1e-4 and a poly learning
rate. The auxiliary loss has weight 0.5, and the auxiliary head has ten times the learning rate. The losses ignore pixels with
label 255. Dropout is off because the two implementations cannot share random numbers. The script prints the relative errors in
the losses, gradients, running statistics and parameters, and names the tensors with the largest errors.

In float64, both implementations agree up to rounding, so they compute the same function. In float32, no two implementations
agree: if they round an activation near 0 differently, ReLU passes the gradient in one but not in the other, which changes the
gradients in all earlier layers. Two more comparisons confirm this explanation. First, our float32 numbers are no further from
the float64 ones than PyTorch's are. Second, with ReLU and max pooling replaced by smooth functions in both implementations, the
float32 gradients agree to 1e-4.

With --write, the script stores a sample of PyTorch's float64 numbers in a golden file for tests/training/test_step_parity.py.
"""

import argparse
import contextlib
import sys
import unittest.mock
from collections.abc import Callable, Iterator

import flax
import jax
import numpy as np
import references
import torch
from live import GOLDEN, fill_network
from steps import LOSS, MEAN, OPTIM, STD, STEPS, Ours, find_vanishing_gradients, relative_errors, run_steps
from torch.nn.functional import cross_entropy, interpolate

from deeplab_jax.models.backbones import resnet

Numbers = dict[str, np.ndarray]
SAMPLE_SIZE = 32  # the number of entries per tensor in the golden file


class Hardsigmoid(torch.nn.Module):
    """A hard sigmoid with an exact gradient.

    Even in float64, PyTorch's own hard sigmoid multiplies by the float32 value of 1/6 in the backward pass, an error of 3e-8.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.relu6(x + 3) / 6


class Torch:
    """A training run in PyTorch."""

    def __init__(self, network: torch.nn.Module, dtype: str) -> None:
        self.network, self.dtype = network.train().to(getattr(torch, dtype)), dtype
        for module in network.modules():
            if isinstance(module, torch.nn.Dropout | torch.nn.Dropout2d):
                module.p = 0.0
            for child in [key for key, value in module.named_children() if isinstance(value, torch.nn.Hardsigmoid)]:
                setattr(module, child, Hardsigmoid())
        aux = [p for name, p in network.named_parameters() if name.startswith(("aux_classifier.", "auxiliary_head."))]
        others = [p for name, p in network.named_parameters() if not name.startswith(("aux_classifier.", "auxiliary_head."))]
        groups = [{"params": others}, {"params": aux, "lr": OPTIM.lr * dict(OPTIM.lr_factors)["aux_"]}]
        self.sgd = torch.optim.SGD(groups, lr=OPTIM.lr, momentum=OPTIM.momentum, weight_decay=OPTIM.weight_decay)
        self.schedule = torch.optim.lr_scheduler.PolynomialLR(self.sgd, total_iters=STEPS, power=OPTIM.power)

    def step(self, batch: dict[str, np.ndarray]) -> float:
        x = torch.from_numpy(((batch["image"].astype(self.dtype) - MEAN) / STD).transpose(0, 3, 1, 2).copy())
        label = torch.from_numpy(batch["label"].astype(np.int64))
        outputs = references.forward(self.network, x)
        resized = {name: interpolate(y, label.shape[1:], mode="bilinear", align_corners=False) for name, y in outputs.items()}
        parts = {name: cross_entropy(y, label, ignore_index=255) for name, y in resized.items()}
        loss = parts["logits"] + LOSS.aux_weight * parts.get("aux", 0.0)
        self.sgd.zero_grad()
        loss.backward()
        self.sgd.step()
        self.schedule.step()
        return float(loss.detach())

    def gradients(self) -> dict[str, np.ndarray]:
        return {name: p.grad.numpy().copy() for name, p in self.network.named_parameters()}

    def state(self) -> dict[str, np.ndarray]:
        return {name: x.numpy().copy() for name, x in self.network.state_dict().items() if x.ndim}


def make_smooth(network: torch.nn.Module) -> torch.nn.Module:
    """Replace a PyTorch network's activations and max pool with smooth functions in place, and return the network.

    SiLU replaces ReLU and hard-swish, the sigmoid replaces the hard sigmoid, and an average pool replaces the max pool.
    """
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, torch.nn.ReLU | torch.nn.Hardswish):
                setattr(module, name, torch.nn.SiLU())
            elif isinstance(child, torch.nn.Hardsigmoid):
                setattr(module, name, torch.nn.Sigmoid())
            elif isinstance(child, torch.nn.MaxPool2d):
                setattr(module, name, torch.nn.AvgPool2d(3, 2, 1))
    return network


@contextlib.contextmanager
def make_ours_smooth() -> Iterator[None]:
    """Make the same replacements as `make_smooth` in all of our networks traced while this context is active."""

    def average(x: jax.Array, rows: None = None) -> jax.Array:
        return flax.linen.avg_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))

    with (
        unittest.mock.patch.object(flax.linen, "relu", flax.linen.silu),
        unittest.mock.patch.object(flax.linen, "hard_swish", flax.linen.silu),
        unittest.mock.patch.object(flax.linen, "hard_sigmoid", flax.linen.sigmoid),
        unittest.mock.patch.object(resnet, "max_pool_3x3", average),
    ):
        yield


def report(title: str, errors: dict[str, float]) -> None:
    """Print the median and largest error for each kind of number."""
    print(title)
    for kind in (
        "loss after step 0",
        "loss",
        "gradient",
        "statistic after step 0",
        "statistic",
        "parameter after step 0",
        "parameter",
    ):
        selected = {key: error for key, error in errors.items() if key.startswith(kind)}
        worst, median = max(selected, key=selected.get), np.median(list(selected.values()))
        large = sum(error > 1e-3 for error in selected.values())
        print(f"  {kind:22} median {median:.1e}, largest {selected[worst]:.1e} ({worst}), {large} above 1e-3")
    sys.stdout.flush()


def compare(name: str, write: bool) -> bool:
    """Compare one network's training steps with its reference, and return whether all errors are within tolerance."""
    build, published = references.NETWORKS[name]
    weights, classes = fill_network(build()), 19 if name.startswith("mmseg") else 21

    def run_torch(dtype: str, change: Callable[[torch.nn.Module], torch.nn.Module] = lambda network: network) -> Numbers:
        network = change(build())
        fill_network(network)
        return run_steps(Torch(network, dtype), classes)

    def run_ours(dtype: str) -> Numbers:
        return run_steps(Ours(weights, published, dtype), classes)

    torch_float64 = run_torch("float64")
    with jax.enable_x64(True):
        our_float64 = run_ours("float64")
    vanishing = find_vanishing_gradients(torch_float64)
    is_same_set = vanishing == find_vanishing_gradients(our_float64)
    print(f"{name}: {len(vanishing)} gradients vanish and are omitted below (the same ones in both: {is_same_set})")

    def compute_errors(actual: Numbers, expected: Numbers) -> dict[str, float]:
        return {key: error for key, error in relative_errors(actual, expected).items() if key not in vanishing}

    float64_errors = compute_errors(our_float64, torch_float64)
    report(f"{name}: ours and PyTorch, both in float64", float64_errors)
    our_float32, torch_float32 = run_ours("float32"), run_torch("float32")
    report(f"{name}: ours and PyTorch, both in float32", compute_errors(our_float32, torch_float32))
    report(f"{name}: ours in float32 and PyTorch in float64", compute_errors(our_float32, torch_float64))
    report(f"{name}: PyTorch in float32 and in float64", compute_errors(torch_float32, torch_float64))
    with make_ours_smooth():
        smooth_errors = compute_errors(run_ours("float32"), run_torch("float32", make_smooth))
    report(f"{name}: ours and PyTorch, both in float32 with smooth functions", smooth_errors)
    if write:
        sample = {key: x.reshape(-1)[:SAMPLE_SIZE] for key, x in torch_float64.items()}
        np.savez_compressed(GOLDEN / f"train_{name}.npz", **sample)
    first_loss_error = compute_errors(our_float32, torch_float32)["loss after step 0"]
    # The last step has a looser bound because five steps on a random ResNet-101 amplify float64 rounding errors by a factor of
    # 1e10.
    early_errors = [error for key, error in float64_errors.items() if f"step {STEPS - 1}" not in key]
    return (
        is_same_set
        and max(early_errors) < 1e-6
        and max(float64_errors.values()) < 1e-3
        and first_loss_error < 1e-5
        and max(smooth_errors.values()) < 1e-3
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "names", nargs="*", default=["torchvision_r50", "torchvision_r101", "torchvision_mobilenetv3", "mmseg_r18"]
    )
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    results = [compare(name, arguments.write) for name in arguments.names]
    sys.exit(0 if all(results) else 1)
