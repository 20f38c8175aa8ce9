"""Five training steps under torchvision's recipe, and ours on it; PyTorch's is in train_step.py. No PyTorch here."""

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
from deeplab_jax.runtime.mesh import make_mesh
from deeplab_jax.train.optimizer import make_optimizer
from deeplab_jax.train.state import TrainState
from deeplab_jax.train.step import compile_train_step
from deeplab_jax.weights import names, transfer

# references/segmentation/train.py of torchvision; its rate of 0.02 is for 32 images.
OPTIM = OptimConfig(lr=0.0025, power=0.9, momentum=0.9, weight_decay=1e-4, aux_lr_factor=10.0)
LOSS = LossConfig(aux_weight=0.5)
STEPS, ROWS, SIZE = 5, 4, (97, 129)
MEAN, STD = 128.0, 64.0  # exact in every precision, so that both start from the same image


class Run(Protocol):
    """A network in training; tensors by the reference's names."""

    def step(self, batch: dict[str, np.ndarray]) -> float: ...

    def gradients(self) -> dict[str, np.ndarray]: ...

    def state(self) -> dict[str, np.ndarray]: ...


def batches(num_classes: int) -> list[dict[str, np.ndarray]]:
    """Images, and labels in blocks of 8x8 pixels with a share of ignored ones."""
    made = []
    for step in range(STEPS):
        image = fill.uniform(f"step {step}", (ROWS, *SIZE, 3), 0, 256).astype(np.uint8)
        blocks = fill.uniform(f"label {step}", (ROWS, 1 + SIZE[0] // 8, 1 + SIZE[1] // 8), 0, num_classes + 3).astype(np.uint8)
        label = blocks.repeat(8, 1).repeat(8, 2)[:, : SIZE[0], : SIZE[1]]
        made.append({"image": image, "label": np.where(label < num_classes, label, 255), "valid": np.ones(ROWS, bool)})
    return made


class Ours:
    """Our run, from the same weights; everything it gives has PyTorch's names and axes."""

    def __init__(self, weights: dict[str, np.ndarray], published: str, dtype: str) -> None:
        config, variables = imported(weights, published)
        self.model = dataclasses.replace(
            config.model, dropout=0.0, aux_dropout=0.0, dtype=dtype, mean=(MEAN,) * 3, std=(STD,) * 3
        )
        self.fmt = "mmseg" if self.model.fusion == "3x3" else "torchvision"
        model, optimizer = DeepLabV3(self.model, config.labels.num_classes), make_optimizer(OPTIM, STEPS)
        variables = jax.tree.map(lambda x: jnp.asarray(x, dtype), variables)
        self.train_state = TrainState(
            jnp.zeros((), jnp.int32),
            **variables,
            opt_state=optimizer.init(variables["params"]),
            skipped=jnp.zeros((), jnp.int32),
        )
        self.compiled = compile_train_step(
            make_mesh(MeshConfig(data=1)),
            config=Config(model=self.model, loss=LOSS, optim=OPTIM),
            model=model,
            optimizer=optimizer,
        )

    def step(self, batch: dict[str, np.ndarray]) -> float:
        before = jax.tree.map(np.array, self.train_state.params)
        self.train_state, scalars = self.compiled(self.train_state, batch)
        if int(self.train_state.step) == 1:
            # The momentum's first value is the gradient plus the decay.
            momentum = optax.tree.get(self.train_state.opt_state, "trace")
            self.first = jax.tree.map(lambda m, p: np.asarray(m) - OPTIM.weight_decay * p, momentum, before)
        return float(scalars["loss"])

    def gradients(self) -> dict[str, np.ndarray]:
        return self._named({"params": self.first})

    def state(self) -> dict[str, np.ndarray]:
        return self._named({"params": self.train_state.params, "batch_stats": self.train_state.batch_stats})

    def _named(self, variables: dict) -> dict[str, np.ndarray]:
        flat = {path: np.asarray(x) for path, x in names.flatten(variables).items()}
        named = names.reference_names(flat, self.model, self.fmt)
        return {name: names.to_reference(path, flat[path], self.model, self.fmt) for path, name in named.items()}


def imported(weights: dict[str, np.ndarray], published: str) -> tuple[Config, dict]:
    """Through a weights file and `weights import`, as a user does it."""
    with tempfile.TemporaryDirectory() as folder:
        save_file(weights, f"{folder}/{published}.safetensors")
        transfer.import_weights(f"{folder}/{published}.safetensors", f"{folder}/imported", say=lambda _: None)
        config = stored_config(f"{folder}/imported")
        return config, restore_model(f"{folder}/imported", like=config)


def numbers(run: Run, num_classes: int) -> dict[str, np.ndarray]:
    """Loss of every step, gradients of the first, running statistics and parameters after the first and the last."""
    found: dict[str, np.ndarray] = {}
    for step, batch in enumerate(batches(num_classes)):
        found[f"loss after step {step}"] = np.array(run.step(batch))
        if step == 0:
            found |= {f"gradient of {name}": x for name, x in run.gradients().items()}
        if step in (0, STEPS - 1):
            kinds = {name: "statistic" if "running" in name else "parameter" for name in run.state()}
            found |= {f"{kinds[name]} after step {step} of {name}": x for name, x in run.state().items()}
    return found


def vanishing(found: dict[str, np.ndarray]) -> set[str]:
    """Gradients, in float64, that are 0 but for rounding: of a bias before a convolution and BatchNorm, which takes it away."""
    norms = {key: float(np.linalg.norm(x)) for key, x in found.items() if key.startswith("gradient")}
    return {key for key, norm in norms.items() if norm < 1e-12 * max(norms.values())}


def errors(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> dict[str, float]:
    """|a - b| / |b| by tensor."""
    assert ours.keys() == theirs.keys()
    return {key: float(np.linalg.norm(ours[key] - b) / max(np.linalg.norm(b), 1e-30)) for key, b in theirs.items()}
