"""Five training steps of ours and of PyTorch's, side by side: python tests/parity/train_step.py [--write] [NAME ...]

Torchvision's recipe (references/segmentation/train.py): SGD with momentum 0.9 and weight decay 1e-4, poly rate, the auxiliary
loss at 0.5 and its head at ten times the rate; losses over the pixels that are not 255. Dropout is off: its random numbers
cannot be shared. Prints the relative error of loss, gradients, running statistics and parameters, tensor by tensor at the
worst.

In float64 the two agree to rounding, which is what shows that they are the same function. In float32 no two implementations
do: an activation within rounding of 0 passes its gradient in one and not in the other, and that moves the gradients of all
layers below. Two more comparisons show it: how far each is from float64 (ours no further than PyTorch's), and float32 with
ReLU and the maximum replaced by smooth functions on either side, where gradients agree to 1e-4.

--write stores a sample of PyTorch's float64 numbers as the golden file of tests/train/test_step_parity.py.
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
from live import GOLDEN, filled
from steps import LOSS, MEAN, OPTIM, STD, STEPS, Ours, errors, numbers, vanishing
from torch.nn.functional import cross_entropy, interpolate

from deeplab_jax.models.backbones import resnet

Numbers = dict[str, np.ndarray]
SAMPLE = 32  # entries a tensor in the golden file


class Hardsigmoid(torch.nn.Module):
    """PyTorch's, whose backward pass multiplies by a 1/6 of float32, also in float64: off by 3e-8."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.relu6(x + 3) / 6


class Torch:
    """PyTorch's run."""

    def __init__(self, network: torch.nn.Module, dtype: str) -> None:
        self.network, self.dtype = network.train().to(getattr(torch, dtype)), dtype
        for module in network.modules():
            if isinstance(module, torch.nn.Dropout | torch.nn.Dropout2d):
                module.p = 0.0
            for child in [key for key, value in module.named_children() if isinstance(value, torch.nn.Hardsigmoid)]:
                setattr(module, child, Hardsigmoid())
        aux = [p for name, p in network.named_parameters() if name.startswith(("aux_classifier.", "auxiliary_head."))]
        others = [p for name, p in network.named_parameters() if not name.startswith(("aux_classifier.", "auxiliary_head."))]
        groups = [{"params": others}, {"params": aux, "lr": OPTIM.lr * OPTIM.aux_lr_factor}]
        self.sgd = torch.optim.SGD(groups, lr=OPTIM.lr, momentum=OPTIM.momentum, weight_decay=OPTIM.weight_decay)
        self.schedule = torch.optim.lr_scheduler.PolynomialLR(self.sgd, total_iters=STEPS, power=OPTIM.power)

    def step(self, batch: dict[str, np.ndarray]) -> float:
        x = torch.from_numpy(((batch["image"].astype(self.dtype) - MEAN) / STD).transpose(0, 3, 1, 2).copy())
        label = torch.from_numpy(batch["label"].astype(np.int64))
        outputs = references.forward(self.network, x)
        sized = {name: interpolate(y, label.shape[1:], mode="bilinear", align_corners=False) for name, y in outputs.items()}
        parts = {name: cross_entropy(y, label, ignore_index=255) for name, y in sized.items()}
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


def smooth(network: torch.nn.Module) -> torch.nn.Module:
    """The network with SiLU for ReLU and hard-swish, the sigmoid for the hard one, and the average for the maximum."""
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
def ours_smooth() -> Iterator[None]:
    """The same for networks of ours that are traced meanwhile."""

    def average(x: jax.Array, rows: None = None) -> jax.Array:
        return flax.linen.avg_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))

    with (
        unittest.mock.patch.object(flax.linen, "relu", flax.linen.silu),
        unittest.mock.patch.object(flax.linen, "hard_swish", flax.linen.silu),
        unittest.mock.patch.object(flax.linen, "hard_sigmoid", flax.linen.sigmoid),
        unittest.mock.patch.object(resnet, "max_pool_3x3", average),
    ):
        yield


def report(title: str, found: dict[str, float]) -> None:
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
        some = {key: error for key, error in found.items() if key.startswith(kind)}
        worst = max(some, key=some.get)
        over = sum(error > 1e-3 for error in some.values())
        print(f"  {kind:22} median {np.median(list(some.values())):.1e}, worst {some[worst]:.1e} ({worst}), {over} over 1e-3")
    sys.stdout.flush()


def compare(name: str, write: bool) -> bool:
    build, published = references.NETWORKS[name]
    weights, classes = filled(build()), 19 if name.startswith("mmseg") else 21

    def of_torch(dtype: str, change: Callable[[torch.nn.Module], torch.nn.Module] = lambda network: network) -> Numbers:
        network = change(build())
        filled(network)
        return numbers(Torch(network, dtype), classes)

    truth = of_torch("float64")
    with jax.enable_x64(True):
        ours = numbers(Ours(weights, published, "float64"), classes)
    nothing = vanishing(truth)
    print(f"{name}: {len(nothing)} gradients are 0 in either float64: {nothing == vanishing(ours)}; they are left out below")

    def compared(ours: Numbers, theirs: Numbers) -> dict[str, float]:
        return {key: error for key, error in errors(ours, theirs).items() if key not in nothing}

    double = compared(ours, truth)
    report(f"{name}: ours against PyTorch's, both float64", double)
    single, their_single = numbers(Ours(weights, published, "float32"), classes), of_torch("float32")
    report(f"{name}: ours against PyTorch's, both float32", compared(single, their_single))
    report(f"{name}: ours in float32 against float64", compared(single, truth))
    report(f"{name}: PyTorch's in float32 against float64", compared(their_single, truth))
    with ours_smooth():
        smoothed = compared(numbers(Ours(weights, published, "float32"), classes), of_torch("float32", smooth))
    report(f"{name}: ours against PyTorch's, both float32 and smooth", smoothed)
    if write:
        sample = {key: x.reshape(-1)[:SAMPLE] for key, x in truth.items()}
        np.savez_compressed(GOLDEN / f"train_{name}.npz", **sample)
    in_loss = compared(single, their_single)["loss after step 0"]
    # Five steps of a random ResNet-101 multiply the last digit of a float64 by 1e10.
    first = [error for key, error in double.items() if f"step {STEPS - 1}" not in key]
    return (
        nothing == vanishing(ours)
        and max(first) < 1e-6
        and max(double.values()) < 1e-3
        and in_loss < 1e-5
        and max(smoothed.values()) < 1e-3
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
