"""The training step: one pure function of (state, batch)."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, PyTree, Shaped, UInt8

from deeplab_jax.config import Config
from deeplab_jax.labels import IGNORE
from deeplab_jax.losses import LOSSES
from deeplab_jax.models import DeepLabV3, Outputs, normalize
from deeplab_jax.models.extent import Rows, split_rows
from deeplab_jax.models.operations import interpreted_by
from deeplab_jax.models.resize import resize_like
from deeplab_jax.runtime.compilation import lean_options
from deeplab_jax.runtime.mesh import batch_shardings, replicated
from deeplab_jax.train.optimizer import add_penalty, apply_where
from deeplab_jax.train.photometric import distort
from deeplab_jax.train.state import TrainState

Batch = dict[str, Shaped[Array, "n ..."]]
# (params, batch_stats, images and photometric factors, dropout key) -> (outputs at the labels' size, new batch_stats)
Forward = Callable[..., tuple[Outputs, PyTree]]
# (params, batch_stats, batch with mask, dropout key) -> (loss, (correctly classified pixels, new batch_stats))
BatchLoss = Callable[..., tuple[Array, tuple[Array, PyTree]]]


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    config: Config,
    model: DeepLabV3,
    optimizer: optax.GradientTransformation,
    mesh: Mesh | None = None,
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """One update on the global batch.

    An update that is not finite, or of a batch without a pixel that counts, is not applied: then only the step and the
    schedule's counter go on.

    Args:
      state: before the update.
      batch: "image" uint8 [n, h, w, 3], "label" uint8 [n, h, w], "valid" bool [n], and with `data.photometric` also
        "photometric" float32 [n, 5], see `photometric.distort`.
      config: of the run; static, like the arguments below.
      model: the network.
      optimizer: what `make_optimizer` returns.
      mesh: the devices; needed where image rows are split over them.

    Returns:
      The state after it, and {"loss": what is minimised, "accuracy": over the valid pixels, "grad_norm", "skipped": the
      updates not applied so far because they were not finite}. Statistics, hard pixels, losses and gradient are those of the
      global batch, whatever the mesh; of micro-batches, see `_gradient`.
    """
    dropout_key = jax.random.fold_in(jax.random.key(config.seed), state.step)
    rows = split_rows(mesh, config.data.crop_size[0], config.model.output_stride) if mesh else None
    labels, mask = batch["label"], _mask(batch, rows)
    loss_fn = functools.partial(
        _loss, counts=_counts(labels, mask, config), config=config, forward=_make_forward(config, model, mesh, rows)
    )
    batch = {name: batch[name] for name in _image_names(config)} | {"label": labels, "mask": mask}
    (loss, (hits, batch_stats)), grads = _gradient(loss_fn, state, batch, dropout_key, config.train.micro_batches)
    grad_norm = optax.tree.norm(grads)
    is_finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    counted = jnp.sum(mask & (labels != IGNORE))
    applies = is_finite & (counted > 0)
    grads = add_penalty(config.optim, grads, state.params)
    params, opt_state = apply_where(applies, optimizer, grads, state.opt_state, state.params)
    average = state.ema_params and _moving_average(state.ema_params, params, state.step, config.optim.ema_decay)
    state = TrainState(
        step=state.step + 1,
        params=params,
        batch_stats=_choose(applies, batch_stats, state.batch_stats),
        opt_state=opt_state,
        skipped=state.skipped + ~is_finite,
        ema_params=average and _choose(applies, average, state.ema_params),
    )
    accuracy = hits / jnp.maximum(counted, 1)
    return state, {"loss": loss, "accuracy": accuracy, "grad_norm": grad_norm, "skipped": state.skipped}


def _gradient(
    loss_fn: BatchLoss, state: TrainState, batch: Batch, key: Array, micro_batches: int
) -> tuple[tuple[Array, tuple[Array, PyTree]], PyTree]:
    """What `jax.value_and_grad(loss_fn)` gives for the batch, computed in equal parts.

    The losses of the parts add up to that of the batch, whose counts they are divided by. BatchNorm sees one part at a time;
    the running statistics move once, by the mean over the parts.
    """
    value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)
    if micro_batches == 1:
        return value_and_grad(state.params, state.batch_stats, batch, key)

    def add(total: Any, numbered: tuple[Array, Batch]) -> tuple[Any, None]:
        i, part = numbered
        gained = value_and_grad(state.params, state.batch_stats, part, jax.random.fold_in(key, i))
        return jax.tree.map(jnp.add, total, gained), None

    # Row r belongs to part r % micro_batches: the parts are the same, and each device has its share, on any mesh.
    parts = {name: jnp.moveaxis(x.reshape(-1, micro_batches, *x.shape[1:]), 1, 0) for name, x in batch.items()}
    first = {name: x[0] for name, x in parts.items()}
    shapes = jax.eval_shape(value_and_grad, state.params, state.batch_stats, first, key)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    ((loss, (hits, stats)), grads), _ = jax.lax.scan(add, zeros, (jnp.arange(micro_batches), parts))
    return (loss, (hits, jax.tree.map(lambda x: x / micro_batches, stats))), grads


def _make_forward(config: Config, model: DeepLabV3, mesh: Mesh | None, rows: Rows | None) -> Forward:
    """Return the forward pass on the whole batch; where rows are split, every device computes its own."""
    forward = functools.partial(_forward, model=model, rows=rows)
    if rows is None:
        return forward
    by_rows = P(None, rows.axis)
    images = {name: by_rows if name == "image" else P() for name in _image_names(config)}
    specs = (P(), P(), images, P())
    return jax.shard_map(forward, mesh=mesh, in_specs=specs, out_specs=(by_rows, P()), axis_names={rows.axis})


def _forward(
    params: PyTree, batch_stats: PyTree, batch: Batch, key: Array, *, model: DeepLabV3, rows: Rows | None
) -> tuple[Outputs, PyTree]:
    """Return the logits of all heads at the images' size, and the new statistics."""
    images = batch["image"]
    if "photometric" in batch:
        images = distort(images.astype(jnp.float32), batch["photometric"])
    images = normalize(images, model.config.mean, model.config.std)
    variables = {"params": params, "batch_stats": batch_stats}
    with interpreted_by(rows):
        outputs, updated = model.apply(variables, images, True, mutable=["batch_stats"], rngs={"dropout": key})
        resize = functools.partial(resize_like, like=images, align_corners=model.config.align_corners)
        outputs = Outputs(resize(outputs.logits), outputs.aux if outputs.aux is None else resize(outputs.aux))
    return outputs, updated["batch_stats"]


def _loss(
    params: PyTree, batch_stats: PyTree, batch: Batch, key: Array, *, counts: list[Array], config: Config, forward: Forward
) -> tuple[Array, tuple[Array, PyTree]]:
    """Return the batch's share of the weighted sum of all losses and heads, and how many pixels are classified correctly.

    Only the main head looks for hard pixels, as in mmsegmentation's DeepLabV3 configs with a sampler. (BiSeNetV2's and STDC's
    have one on the auxiliary heads too.)
    """
    outputs, batch_stats = forward(params, batch_stats, {name: batch[name] for name in _image_names(config)}, key)
    labels, mask = batch["label"], batch["mask"]
    for_aux = dataclasses.replace(config.loss, ohem_threshold=0.0)
    loss = jnp.zeros((), outputs.logits.dtype)
    for name, weight, count in zip(config.loss.terms, config.loss.weights, counts, strict=True):
        total = LOSSES[name](outputs.logits, labels, mask, config.loss).total
        if outputs.aux is not None:
            total += config.loss.aux_weight * LOSSES[name](outputs.aux, labels, mask, for_aux).total
        loss += weight * (total / count)
    hits = jnp.sum((jnp.argmax(outputs.logits, -1) == labels) & mask)
    return loss, (hits.astype(jnp.float32), batch_stats)


def _counts(labels: UInt8[Array, "n h w"], mask: Bool[Array, "n h w"], config: Config) -> list[Array]:
    """Return what each loss is divided by, of the whole batch."""
    logits = jnp.zeros((*labels.shape, config.labels.num_classes))  # counts do not depend on them: XLA drops all the rest
    return [LOSSES[name](logits, labels, mask, config.loss).count for name in config.loss.terms]


def _mask(batch: Batch, rows: Rows | None) -> Bool[Array, "n h w"]:
    """Return where there is an image: not in padding images, nor in the rows below that make heights divide over devices."""
    mask = jnp.broadcast_to(batch["valid"][:, None, None], batch["label"].shape)
    return mask & (jnp.arange(mask.shape[1]) < rows.height)[None, :, None] if rows else mask


def batch_names(config: Config) -> tuple[str, ...]:
    """Return what the step reads of a batch."""
    return ("label", "valid", *_image_names(config))


def _image_names(config: Config) -> tuple[str, ...]:
    """Return what the forward pass reads of a batch."""
    return ("image", *["photometric"] * config.data.photometric)


def _moving_average(average: PyTree, params: PyTree, step: Array, decay: float) -> PyTree:
    """The average that follows the parameters faster at first, as TensorFlow's ExponentialMovingAverage(num_updates) does."""
    kept = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda old, new: kept * old + (1 - kept) * new, average, params)


def _choose(applies: Array, new: PyTree, old: PyTree) -> PyTree:
    return jax.tree.map(functools.partial(jnp.where, applies), new, old)


def compile_train_step(mesh: Mesh, *, config: Config, model: DeepLabV3, optimizer: optax.GradientTransformation) -> Any:
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
