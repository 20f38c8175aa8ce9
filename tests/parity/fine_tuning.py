"""Compare twenty training steps with each fine-tuning setting with the same steps in PyTorch.

Usage: python tests/parity/fine_tuning.py

The network is torchvision's DeepLabV3 with seven bottlenecks. PyTorch has a parameter group for each learning rate. Frozen
parameters need no gradient, and BatchNorm layers with frozen statistics are in evaluation mode. Both implementations compute in
float64, because in float32 an activation near 0 can pass the ReLU in only one of them. The script prints the largest relative
error of the losses, and of all changes of parameters and running statistics together.
"""

import dataclasses
import functools
import re
import sys

import fill
import jax
import jax.numpy as jnp
import numpy as np
import references
import torch
from steps import MEAN, STD
from torch.nn.functional import cross_entropy, interpolate

from deeplab_jax.config import Config, DataConfig, LossConfig, MeshConfig, ModelConfig, OptimConfig, TrainConfig
from deeplab_jax.labels import LabelSet
from deeplab_jax.models import DeepLabV3
from deeplab_jax.models.backbones import BACKBONES, resnet
from deeplab_jax.runtime.mesh import make_mesh, replicated_sharding
from deeplab_jax.training.begin import set_up
from deeplab_jax.training.parts import matches, split
from deeplab_jax.training.state import TrainState
from deeplab_jax.training.step import compile_train_step
from deeplab_jax.weights import names

BLOCKS, CLASSES, STEPS, ROWS, SIZE = (1, 1, 2, 3), 5, 20, 4, (65, 97)
STATISTICS = ".*/(mean|var)"
RECIPES = {
    "AdamW, cosine, clipping": OptimConfig(name="adamw", schedule="cosine", lr=1e-3, weight_decay=0.05, clip_norm=1.0),
    "SGD, poly, frozen statistics, backbone 0.1": OptimConfig(frozen=(STATISTICS,), lr_factors=(("backbone", 0.1),)),
    "AdamW, one-cycle, frozen stem and stages 1 and 2": OptimConfig(
        name="adamw", schedule="one_cycle", lr=1e-3, lr_end=1e-3 / 25e4, frozen=("backbone/stem", "backbone/stage[12]")
    ),
    "SGD, piecewise, clipping, frozen BatchNorm, no decay of biases": OptimConfig(
        schedule="piecewise",
        milestones=(0.5, 0.8),
        clip_norm=0.5,
        frozen=(STATISTICS, ".*bn.*/(scale|bias)"),
        no_decay=(".*/bias",),
    ),
    "SGD, frozen backbone": OptimConfig(frozen=("backbone",)),
}


class Torch:
    """A training run in PyTorch.

    Args:
      tensors: The initial state dict.
      paths: Our variable path for each name in the state dict.
      config: The recipe.
    """

    def __init__(self, tensors: dict[str, np.ndarray], paths: dict[str, str], config: OptimConfig) -> None:
        self.network, self.config = make_network().double(), config
        self.network.load_state_dict({name: torch.from_numpy(x) for name, x in tensors.items()}, strict=False)
        self.network.train()
        for name, module in self.network.named_modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            if isinstance(module, torch.nn.BatchNorm2d) and matches(paths[f"{name}.running_mean"], config.frozen):
                module.eval()
        groups = []
        for name, parameter in self.network.named_parameters():
            path = paths[name]
            parameter.requires_grad_(not matches(path, config.frozen))
            factor = next((factor for pattern, factor in config.lr_factors if re.match(pattern, path)), 1.0)
            decay = 0.0 if matches(path, config.no_decay) else config.weight_decay
            groups.append({"params": [parameter], "lr": config.lr * factor, "weight_decay": decay})
        if config.name == "adamw":
            self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(groups)
        else:
            self.optimizer = torch.optim.SGD(groups, momentum=config.momentum)
        schedulers, rates = torch.optim.lr_scheduler, [group["lr"] for group in groups]
        make = {
            "poly": functools.partial(schedulers.PolynomialLR, total_iters=STEPS, power=config.power),
            "cosine": functools.partial(schedulers.CosineAnnealingLR, T_max=STEPS),
            "one_cycle": functools.partial(
                schedulers.OneCycleLR, max_lr=rates, total_steps=STEPS, cycle_momentum=False, final_div_factor=1e4
            ),
            "piecewise": functools.partial(
                schedulers.MultiStepLR, milestones=[round(x * STEPS) for x in config.milestones], gamma=config.gamma
            ),
        }
        self.schedule = make[config.schedule](self.optimizer)

    def step(self, batch: dict[str, np.ndarray]) -> float:
        x = torch.from_numpy(((batch["image"].astype(np.float64) - MEAN) / STD).transpose(0, 3, 1, 2).copy())
        label = torch.from_numpy(batch["label"].astype(np.int64))
        logits = interpolate(self.network(x)["out"], label.shape[1:], mode="bilinear", align_corners=False)
        loss = cross_entropy(logits, label, ignore_index=255)
        self.optimizer.zero_grad()
        loss.backward()
        if self.config.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip_norm)
        self.optimizer.step()
        self.schedule.step()
        return float(loss.detach())

    def state(self) -> dict[str, np.ndarray]:
        return {name: x.numpy().copy() for name, x in self.network.state_dict().items() if x.ndim}


class Ours:
    """A training run in our implementation."""

    def __init__(self, variables: dict, config: Config) -> None:
        setup = set_up(config, STEPS)
        trained, _ = split(variables["params"], config.optim.frozen)
        zero = jnp.zeros((), jnp.int32)
        state = TrainState(zero, **variables, opt_state=setup.optimizer.init(trained), skipped=jnp.copy(zero))
        mesh = make_mesh(MeshConfig(data=1))
        self.train_state = jax.device_put(state, replicated_sharding(mesh))
        self.compiled = compile_train_step(mesh, config=config, model=setup.model, optimizer=setup.optimizer)

    def step(self, batch: dict[str, np.ndarray]) -> float:
        self.train_state, scalars = self.compiled(self.train_state, batch)
        return float(scalars["loss"])


def make_network() -> torch.nn.Module:
    """Return torchvision's network, whose ResNet has fewer blocks."""
    references.import_torchvision()
    from torchvision.models import resnet as torch_resnet
    from torchvision.models._utils import IntermediateLayerGetter
    from torchvision.models.segmentation.deeplabv3 import DeepLabHead, DeepLabV3

    dilation = [False, True, True]
    backbone = torch_resnet.ResNet(torch_resnet.Bottleneck, list(BLOCKS), replace_stride_with_dilation=dilation)
    return DeepLabV3(IntermediateLayerGetter(backbone, {"layer4": "out"}), DeepLabHead(2048, CLASSES), None)


def make_config(optim: OptimConfig) -> Config:
    BACKBONES["seven_bottlenecks"] = dataclasses.replace(
        BACKBONES["resnet50"],
        make=functools.partial(resnet.ResNet, blocks=BLOCKS, is_bottleneck=True, name="backbone"),
        blocks=BLOCKS,
        tensor_names=functools.partial(resnet.tensor_names, blocks=BLOCKS),
    )
    model = ModelConfig(
        backbone="seven_bottlenecks",
        output_stride=8,
        fusion="1x1+3x3",
        dropout=0.0,
        dtype="float64",
        mean=(MEAN,) * 3,
        std=(STD,) * 3,
    )
    return Config(
        labels=LabelSet("five", tuple("abcde"), tuple((i, i, i) for i in range(5))),
        model=model,
        data=DataConfig(batch_size=ROWS, crop_size=SIZE),
        loss=LossConfig(),
        optim=optim,
        train=TrainConfig(steps=STEPS),
        mesh=MeshConfig(data=1),
    )


def to_torch(path: names.Path, x: jax.Array, model: ModelConfig) -> np.ndarray:
    return names.to_reference(path, np.asarray(x), model, "torchvision")


def make_batch(step: int) -> dict[str, np.ndarray]:
    """Return a random batch, in which each block of 8x8 pixels has a single label or none."""
    image = fill.uniform(f"step {step}", (ROWS, *SIZE, 3), 0, 256).astype(np.uint8)
    blocks = fill.uniform(f"label {step}", (ROWS, 1 + SIZE[0] // 8, 1 + SIZE[1] // 8), 0, CLASSES + 1).astype(np.uint8)
    label = blocks.repeat(8, 1).repeat(8, 2)[:, : SIZE[0], : SIZE[1]]
    return {"image": image, "label": np.where(label < CLASSES, label, 255), "valid": np.ones(ROWS, bool)}


def compare(title: str, optim: OptimConfig) -> float:
    """Print the errors for one recipe, and return the largest one."""
    config = make_config(optim)
    shapes = {name: tuple(x.shape) for name, x in make_network().state_dict().items() if x.ndim}
    tensors = {name: x.astype(np.float64) for name, x in fill.fill(shapes).items()}
    model = DeepLabV3(config.model, CLASSES)
    init = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False))
    by_path = names.reference_names(names.flatten(init), config.model, "torchvision")
    to_ours = {path: names.from_reference(path, tensors[name], config.model, "torchvision") for path, name in by_path.items()}
    ours = Ours(jax.tree.map(jnp.asarray, names.unflatten(to_ours)), config)
    theirs = Torch(tensors, {name: "/".join(path[1:]) for path, name in by_path.items()}, optim)
    losses = np.array([(ours.step(batch), theirs.step(batch)) for batch in map(make_batch, range(STEPS))])
    after, final = theirs.state(), {"params": ours.train_state.params, "batch_stats": ours.train_state.batch_stats}
    flat = {by_path[path]: to_torch(path, x, config.model) for path, x in names.flatten(final).items()}
    change = np.concatenate([(after[name] - tensors[name]).ravel() for name in flat])
    error = np.concatenate([(after[name] - flat[name]).ravel() for name in flat])
    errors = np.abs(losses[:, 0] / losses[:, 1] - 1).max(), np.linalg.norm(error) / np.linalg.norm(change)
    fixed = [name for name in flat if np.array_equal(flat[name], tensors[name])]
    same = fixed == [name for name in flat if np.array_equal(after[name], tensors[name])]
    print(
        f"{title}: loss {losses[0, 1]:.4f} to {losses[-1, 1]:.4f}, loss error {errors[0]:.1e}, change error {errors[1]:.1e}, "
        f"{len(fixed)} of {len(flat)} tensors unchanged (the same ones in both: {same})",
        flush=True,
    )
    return max(errors) if same else np.inf


if __name__ == "__main__":
    with jax.enable_x64(True):
        results = [compare(title, optim) for title, optim in RECIPES.items()]
    sys.exit(0 if max(results) < 1e-5 else 1)
