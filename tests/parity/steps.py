"""Run five training steps with torchvision's recipe in our implementation.

train_step.py runs the same steps in PyTorch. This module does not need PyTorch.
"""

import dataclasses
import tempfile
from typing import Protocol

import fill
import jax
import jax.numpy as jnp
import numpy as np
import optax
from safetensors.numpy import save_file

from deeplab_jax.checkpoints.store import restore_model, stored_config
from deeplab_jax.config import Config, LossConfig, MeshConfig, OptimConfig
from deeplab_jax.models import DeepLabV3
from deeplab_jax.runtime.mesh import make_mesh, replicated_sharding
from deeplab_jax.training.optimizer import make_optimizer
from deeplab_jax.training.state import TrainState
from deeplab_jax.training.step import compile_train_step
from deeplab_jax.weights import names, transfer

# The recipe comes from torchvision's references/segmentation/train.py, with an eighth of its learning rate for 32 images.
OPTIM = OptimConfig(lr=0.0025, power=0.9, momentum=0.9, weight_decay=1e-4, lr_factors=(("aux_", 10.0),))
LOSS = LossConfig(aux_weight=0.5)
# The images are as wide as the largest atrous rate needs to reach other pixels, and low, so that the steps are fast.
STEPS, ROWS, SIZE = 5, 3, (17, 305)
MEAN, STD = 128.0, 64.0  # powers of 2 make normalised images exact, so both implementations get the same values


class Run(Protocol):
    """The interface to a training run. All tensors have the reference's names and axis order."""

    def step(self, batch: dict[str, np.ndarray]) -> float:
        """Train on a batch and return the loss."""

    def gradients(self) -> dict[str, np.ndarray]:
        """Return the first step's gradients."""

    def state(self) -> dict[str, np.ndarray]:
        """Return the current parameters and running statistics."""


def make_batches(num_classes: int) -> list[dict[str, np.ndarray]]:
    """Return one random batch per step. Each block of 8x8 pixels has a single label, and some blocks are ignored."""
    batches = []
    for step in range(STEPS):
        image = fill.uniform(f"step {step}", (ROWS, *SIZE, 3), 0, 256).astype(np.uint8)
        blocks = fill.uniform(f"label {step}", (ROWS, 1 + SIZE[0] // 8, 1 + SIZE[1] // 8), 0, num_classes + 3).astype(np.uint8)
        label = blocks.repeat(8, 1).repeat(8, 2)[:, : SIZE[0], : SIZE[1]]
        batches.append({"image": image, "label": np.where(label < num_classes, label, 255), "valid": np.ones(ROWS, bool)})
    return batches


class Ours:
    """A training run in our implementation, starting from the reference's weights."""

    def __init__(self, weights: dict[str, np.ndarray], published: str, dtype: str) -> None:
        config, variables = import_network(weights, published)
        self.model = dataclasses.replace(
            config.model, dropout=0.0, aux_dropout=0.0, dtype=dtype, mean=(MEAN,) * 3, std=(STD,) * 3
        )
        self.fmt = "mmseg" if self.model.fusion == "3x3" else "torchvision"
        model, optimizer = DeepLabV3(self.model, config.labels.num_classes), make_optimizer(OPTIM, STEPS)
        variables = jax.tree.map(lambda x: jnp.asarray(x, dtype), variables)
        state = TrainState(
            jnp.zeros((), jnp.int32),
            **variables,
            opt_state=optimizer.init(variables["params"]),
            skipped=jnp.zeros((), jnp.int32),
        )
        mesh = make_mesh(MeshConfig(data=1))
        self.train_state = jax.device_put(state, replicated_sharding(mesh))  # otherwise the second step compiles again
        self.compiled = compile_train_step(
            mesh,
            config=Config(model=self.model, loss=LOSS, optim=OPTIM),
            model=model,
            optimizer=optimizer,
        )

    def step(self, batch: dict[str, np.ndarray]) -> float:
        before = jax.tree.map(np.array, self.train_state.params)
        self.train_state, scalars = self.compiled(self.train_state, batch)
        if int(self.train_state.step) == 1:
            # After the first step, the momentum equals the gradient plus the weight decay term.
            momentum = optax.tree.get(self.train_state.opt_state, "trace")
            self.first_gradients = jax.tree.map(lambda m, p: np.asarray(m) - OPTIM.weight_decay * p, momentum, before)
        return float(scalars["loss"])

    def gradients(self) -> dict[str, np.ndarray]:
        return self._to_reference({"params": self.first_gradients})

    def state(self) -> dict[str, np.ndarray]:
        return self._to_reference({"params": self.train_state.params, "batch_stats": self.train_state.batch_stats})

    def _to_reference(self, variables: dict) -> dict[str, np.ndarray]:
        flat = {path: np.asarray(x) for path, x in names.flatten(variables).items()}
        reference_names = names.reference_names(flat, self.model, self.fmt)
        return {name: names.to_reference(path, flat[path], self.model, self.fmt) for path, name in reference_names.items()}


def import_network(weights: dict[str, np.ndarray], published: str) -> tuple[Config, dict]:
    """Return a network's config and variables, imported from a weights file with `weights import`."""
    with tempfile.TemporaryDirectory() as folder:
        save_file(weights, f"{folder}/{published}.safetensors")
        transfer.import_weights(f"{folder}/{published}.safetensors", f"{folder}/imported", say=lambda _: None)
        config = stored_config(f"{folder}/imported")
        return config, restore_model(f"{folder}/imported", like=config)


def run_steps(run: Run, num_classes: int) -> dict[str, np.ndarray]:
    """Run all steps and return the numbers to compare.

    These are the loss at every step, the gradients at the first step, and the running statistics and parameters after the first
    and the last step.
    """
    numbers: dict[str, np.ndarray] = {}
    for step, batch in enumerate(make_batches(num_classes)):
        numbers[f"loss after step {step}"] = np.array(run.step(batch))
        if step == 0:
            numbers |= {f"gradient of {name}": x for name, x in run.gradients().items()}
        if step in (0, STEPS - 1):
            kinds = {name: "statistic" if "running" in name else "parameter" for name in run.state()}
            numbers |= {f"{kinds[name]} after step {step} of {name}": x for name, x in run.state().items()}
    return numbers


def find_vanishing_gradients(numbers: dict[str, np.ndarray]) -> set[str]:
    """Return the names of the gradients that are 0 up to float64 rounding.

    These are the gradients of biases followed by a convolution and BatchNorm, because BatchNorm cancels the biases' effect.
    """
    norms = {key: float(np.linalg.norm(x)) for key, x in numbers.items() if key.startswith("gradient")}
    return {key for key, norm in norms.items() if norm < 1e-12 * max(norms.values())}


def relative_errors(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> dict[str, float]:
    """Return the relative error |a - b| / |b| for each tensor."""
    assert actual.keys() == expected.keys()
    return {key: float(np.linalg.norm(actual[key] - b) / max(np.linalg.norm(b), 1e-30)) for key, b in expected.items()}
