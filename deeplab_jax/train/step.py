"""The training step: one pure function of (state, batch)."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, PyTree, Shaped, UInt8

from deeplab_jax import losses
from deeplab_jax.models import DeepLabV3, Outputs, normalize
from deeplab_jax.models.layers import resize_bilinear
from deeplab_jax.sharding import batch_shardings, replicated
from deeplab_jax.train.state import TrainState

BATCH = ("image", "label", "valid")


def train_step(
    state: TrainState,
    batch: dict[str, Shaped[Array, "n ..."]],
    *,
    model: DeepLabV3,
    optimizer: optax.GradientTransformation,
    aux_weight: float,
    seed: int,
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """One update on the global batch.

    Args:
      state: before the update.
      batch: "image" uint8 [n, h, w, 3], "label" uint8 [n, h, w], "valid" bool [n].
      model: the network; static.
      optimizer: static.
      aux_weight: of the auxiliary head's loss; static.
      seed: of dropout, with the step; static.

    Returns:
      The state after it, and {"loss", "accuracy"} over the pixels that count. Statistics, normaliser and gradient are those
      of the global batch, whatever the mesh.
    """
    dropout_key = jax.random.fold_in(jax.random.key(seed), state.step)
    images = normalize(batch["image"], model.config.mean, model.config.std)
    mask = losses.valid_pixels(batch["label"], batch["valid"])
    count = losses.normalizer(mask)

    def loss_fn(params: PyTree) -> tuple[Array, tuple[Array, Any]]:
        variables = {"params": params, "batch_stats": state.batch_stats}
        outputs, updated = model.apply(variables, images, train=True, mutable=["batch_stats"], rngs={"dropout": dropout_key})
        loss, hits = _loss_and_hits(outputs, batch["label"], mask, aux_weight, model.config.align_corners)
        return loss / count, (hits / count, updated["batch_stats"])

    (loss, (accuracy, batch_stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    state = TrainState(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        batch_stats=batch_stats,
        opt_state=opt_state,
    )
    return state, {"loss": loss, "accuracy": accuracy}


def _loss_and_hits(
    outputs: Outputs, labels: UInt8[Array, "n h w"], mask: Bool[Array, "n h w"], aux_weight: float, align_corners: bool
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Summed loss (the auxiliary one weighted in), and pixels that are right."""
    logits = resize_bilinear(outputs.logits, *labels.shape[1:], align_corners=align_corners)
    loss = losses.cross_entropy(logits, labels, mask)
    hits = jnp.sum((jnp.argmax(logits, -1) == labels) & mask)
    if outputs.aux is not None:
        aux = resize_bilinear(outputs.aux, *labels.shape[1:], align_corners=align_corners)
        loss += aux_weight * losses.cross_entropy(aux, labels, mask)
    return loss, hits.astype(jnp.float32)


def compile_train_step(mesh: Mesh, **static: Any) -> Any:
    """`train_step` jitted over `mesh` with its static arguments bound; the state it is given is donated."""
    whole = replicated(mesh)

    def step(state: TrainState, batch: dict[str, Array]) -> tuple[TrainState, dict[str, Array]]:
        return train_step(state, batch, **static)

    return jax.jit(step, in_shardings=(whole, batch_shardings(mesh, BATCH)), out_shardings=(whole, whole), donate_argnums=0)
