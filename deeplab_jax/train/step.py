"""The training step: one pure function of (state, batch)."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, PyTree, Shaped

from deeplab_jax import losses
from deeplab_jax.config import Config
from deeplab_jax.models import DeepLabV3, Outputs, normalize
from deeplab_jax.models.extent import Rows, split_rows
from deeplab_jax.models.operations import interpreted_by
from deeplab_jax.models.resize import resize_like
from deeplab_jax.runtime.compilation import lean_options
from deeplab_jax.runtime.mesh import batch_shardings, replicated
from deeplab_jax.train.photometric import distort
from deeplab_jax.train.state import TrainState

Batch = dict[str, Shaped[Array, "n ..."]]
# (params, batch_stats, batch, dropout key, pixels) -> (loss, (pixels that are right, new batch_stats))
Loss = Callable[..., tuple[Array, tuple[Array, Any]]]


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    config: Config,
    model: DeepLabV3,
    optimizer: optax.GradientTransformationExtraArgs,
    mesh: Mesh | None = None,
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """One update on the global batch.

    An update that is not finite, or of a batch without a pixel that counts, is not applied: then only the step and the
    optimizer's counters go on.

    Args:
      state: before the update.
      batch: "image" uint8 [n, h, w, 3], "label" uint8 [n, h, w], "valid" bool [n], and with `data.photometric` also
        "photometric" float32 [n, 5], see `photometric.distort`.
      config: of the run; static, as what follows.
      model: the network.
      optimizer: what `make_optimizer` returns.
      mesh: the devices; needed where image rows are split over them.

    Returns:
      The state after it, and {"loss": what is minimised, "accuracy": over the valid pixels, "grad_norm", "skipped": the
      updates not applied so far because they were not finite}. Statistics, hard pixels, normaliser and gradient are those of
      the global batch, whatever the mesh; of micro-batches, see `_gradient`.
    """
    dropout_key = jax.random.fold_in(jax.random.key(config.seed), state.step)
    mask = losses.valid_pixels(batch["label"], batch["valid"])
    rows = split_rows(mesh, config.data.crop_size[0], config.model.output_stride) if mesh else None
    pixels = losses.normalizer(batch["label"], mask, _size(batch, rows), config.loss)
    loss_fn = functools.partial(_loss, config=config, model=model, rows=rows)
    if rows:
        image_rows = {name: P(None, rows.axis) if name in ("image", "label") else P() for name in batch_names(config)}
        specs = (P(), P(), image_rows, P(), P())
        loss_fn = jax.shard_map(loss_fn, mesh=mesh, in_specs=specs, out_specs=P(), axis_names={rows.axis})
    (loss, (hits, batch_stats)), grads = _gradient(
        loss_fn, state, {name: batch[name] for name in batch_names(config)}, dropout_key, pixels, config.train.micro_batches
    )
    grad_norm = optax.tree.norm(grads)
    is_finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    applies = is_finite & jnp.any(mask)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params, applies=applies)
    params = _choose(applies, optax.apply_updates(state.params, updates), state.params)
    average = state.ema_params and _moving_average(state.ema_params, params, state.step, config.optim.ema_decay)
    state = TrainState(
        step=state.step + 1,
        params=params,
        batch_stats=_choose(applies, batch_stats, state.batch_stats),
        opt_state=opt_state,
        skipped=state.skipped + ~is_finite,
        ema_params=average and _choose(applies, average, state.ema_params),
    )
    accuracy = hits / jnp.maximum(jnp.sum(mask), 1)
    return state, {"loss": loss, "accuracy": accuracy, "grad_norm": grad_norm, "skipped": state.skipped}


def _gradient(
    loss_fn: Loss, state: TrainState, batch: Batch, key: Array, pixels: Array, micro_batches: int
) -> tuple[tuple[Array, tuple[Array, Any]], PyTree]:
    """What `jax.value_and_grad(loss_fn)` gives for the batch, computed in equal parts.

    The normaliser is that of the whole batch. BatchNorm sees one part at a time; the running statistics move once, by the
    mean over the parts.
    """
    value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)
    if micro_batches == 1:
        return value_and_grad(state.params, state.batch_stats, batch, key, pixels)

    def add(total: Any, numbered: tuple[Array, Batch]) -> tuple[Any, None]:
        i, part = numbered
        gained = value_and_grad(state.params, state.batch_stats, part, jax.random.fold_in(key, i), pixels)
        return jax.tree.map(jnp.add, total, gained), None

    # Row r belongs to part r % micro_batches: the parts are the same, and each device has its share, on any mesh.
    parts = {name: jnp.moveaxis(x.reshape(-1, micro_batches, *x.shape[1:]), 1, 0) for name, x in batch.items()}
    first = {name: x[0] for name, x in parts.items()}
    shapes = jax.eval_shape(value_and_grad, state.params, state.batch_stats, first, key, pixels)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    ((loss, (hits, stats)), grads), _ = jax.lax.scan(add, zeros, (jnp.arange(micro_batches), parts))
    return (loss, (hits, jax.tree.map(lambda x: x / micro_batches, stats))), grads


def _loss(
    params: PyTree,
    batch_stats: PyTree,
    batch: Batch,
    key: Array,
    pixels: Array,
    *,
    config: Config,
    model: DeepLabV3,
    rows: Rows | None,
) -> tuple[Array, tuple[Array, Any]]:
    """The batch's share of the loss, over `pixels`; on each device of a spatial group, that of the whole group."""
    images = batch["image"]
    if config.data.photometric:
        images = distort(images.astype(jnp.float32), batch["photometric"])
    images = normalize(images, model.config.mean, model.config.std)
    variables = {"params": params, "batch_stats": batch_stats}
    with interpreted_by(rows):
        outputs, updated = model.apply(variables, images, True, mutable=["batch_stats"], rngs={"dropout": key})
        resize = functools.partial(resize_like, like=images, align_corners=model.config.align_corners)
        outputs = Outputs(resize(outputs.logits), outputs.aux if outputs.aux is None else resize(outputs.aux))
    loss, hits = _loss_and_hits(outputs, batch, pixels, config, rows)
    if rows:
        loss, hits = jax.lax.psum((loss, hits), rows.axis)
    return loss / pixels, (hits, updated["batch_stats"])


def _loss_and_hits(
    outputs: Outputs, batch: Batch, pixels: Array, config: Config, rows: Rows | None
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Summed loss at the labels' size, to be divided by `pixels` (the auxiliary one weighted in), and pixels that are right.

    Only the main head looks for hard pixels, as in mmsegmentation's DeepLabV3 configs with a sampler. (BiSeNetV2's and STDC's
    have one on the auxiliary heads too.)
    """
    labels, mask = batch["label"], losses.valid_pixels(batch["label"], batch["valid"])
    logits = outputs.logits
    if config.loss.ohem_threshold:
        axis = rows.axis if rows else None
        images = jnp.sum(batch["valid"])
        loss = losses.mined_cross_entropy(logits, labels, mask, images, pixels, config.loss, axis)
    else:
        loss = losses.cross_entropy(logits, labels, mask, config.loss)
    hits = jnp.sum((jnp.argmax(logits, -1) == labels) & mask)
    if outputs.aux is not None:
        loss += config.optim.aux_weight * losses.cross_entropy(outputs.aux, labels, mask, config.loss)
    return loss, hits.astype(jnp.float32)


def _size(batch: Batch, rows: Rows | None) -> Int[Array, ""]:
    """Pixels of the batch, ignored ones too; rows below the image that make it divide over the devices are none."""
    _, height, width = batch["label"].shape
    return jnp.sum(batch["valid"]) * (rows.height if rows else height) * width


def batch_names(config: Config) -> tuple[str, ...]:
    """What the step reads of a batch."""
    return ("image", "label", "valid", *["photometric"] * config.data.photometric)


def _moving_average(average: PyTree, params: PyTree, step: Array, decay: float) -> PyTree:
    """The average that follows the parameters faster at first, as TensorFlow's ExponentialMovingAverage(num_updates) does."""
    kept = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda old, new: kept * old + (1 - kept) * new, average, params)


def _choose(applies: Array, new: PyTree, old: PyTree) -> PyTree:
    return jax.tree.map(functools.partial(jnp.where, applies), new, old)


def compile_train_step(
    mesh: Mesh, *, config: Config, model: DeepLabV3, optimizer: optax.GradientTransformationExtraArgs
) -> Any:
    """`train_step` jitted over `mesh` with its static arguments bound; the state it is given is donated."""
    whole = replicated(mesh)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        return train_step(state, batch, config=config, model=model, optimizer=optimizer, mesh=mesh)

    return jax.jit(
        step,
        in_shardings=(whole, batch_shardings(mesh, batch_names(config))),
        out_shardings=(whole, whole),
        donate_argnums=0,
        compiler_options=lean_options(mesh.devices.flat[0].platform),
    )
