"""The training step, a pure function of (state, batch)."""

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
from deeplab_jax.models.backbones import find_backbone
from deeplab_jax.models.extent import Extent
from deeplab_jax.models.operations import interpreted_by
from deeplab_jax.models.resize import resize_like
from deeplab_jax.models.rows import compute_on_rows, split_rows
from deeplab_jax.models.target import compiling_for
from deeplab_jax.runtime.compilation import lean_options
from deeplab_jax.runtime.mesh import batch_shardings, replicated_sharding
from deeplab_jax.training.mixing import mix
from deeplab_jax.training.optimizer import apply_where, prepare_gradient
from deeplab_jax.training.parts import merge, split
from deeplab_jax.training.photometric import distort
from deeplab_jax.training.state import TrainState, make_key

Batch = dict[str, Shaped[Array, "n ..."]]
# (trained params, live batch_stats, fixed variables, images and photometric factors, dropout key) -> (outputs at label size,
# new batch_stats)
Forward = Callable[..., tuple[Outputs, PyTree]]
# (trained params, live batch_stats, batch with mask, dropout key) -> (loss, (number of correct pixels, new batch_stats))
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
    """Apply one update computed from the global batch, and return the new state and the step's scalars.

    The update is skipped if it is not finite, or if every pixel in the batch is either ignored or padding. A skipped update
    advances only the step and the schedule counter. `state.skipped` counts the updates that were not finite.

    Args:
      state: The state before the update.
      batch: "image" uint8 [n, h, w, c], "label" uint8 [n, h, w], "valid" bool [n] and, if `data.photometric` is set,
        "photometric" float32 [n, 5] (the factors for `photometric.distort`).
      config: The run's config. This argument and all that follow are static.
      model: The network.
      optimizer: The optimizer from `make_optimizer`.
      mesh: The device mesh, needed only if image rows are split across devices.

    Returns:
      The new state and a dict with "loss", "accuracy", "grad_norm", "skipped" and "labelled". "loss" is the value being
      minimised, "accuracy" covers the labelled pixels, "skipped" is the number of non-finite updates skipped so far, and
      "labelled" is the number of labelled pixels. Without any, the loss and the accuracy are 0.
      On any mesh, all statistics, hard pixels, losses and gradients are computed over the global batch. For micro-batches,
      see `_compute_gradient`.
    """
    key = jax.random.fold_in(make_key(config.seed), state.step)
    margin = find_backbone(config.model.backbone).margin
    rows = split_rows(mesh, config.data.crop_size[0], config.model.output_stride, margin) if mesh else None
    images, labels = mix(batch["image"], batch["label"], batch["valid"], key, config)
    mask = _make_mask(batch, rows)
    trained, fixed_params = split(state.params, config.optim.frozen)
    live_stats, fixed_stats = split(state.batch_stats, config.optim.frozen)
    loss_fn = functools.partial(
        _compute_loss,
        counts=_compute_divisors(labels, mask, config),
        config=config,
        forward=_make_forward(config, model, mesh, rows),
        fixed={"params": fixed_params, "frozen_stats": fixed_stats},
    )
    batch = {name: batch[name] for name in _image_names(config)} | {"image": images, "label": labels, "mask": mask}
    gradient = _compute_gradient(loss_fn, trained, live_stats, batch, key, config.train.micro_batches)
    (loss, (hits, new_stats)), grads = gradient
    grad_norm = optax.tree.norm(grads)
    is_finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    counted = jnp.sum(mask & (labels != IGNORE))
    applies = is_finite & (counted > 0)
    grads = prepare_gradient(config.optim, grads, trained, grad_norm)
    params, opt_state = apply_where(applies, optimizer, grads, state.opt_state, trained)
    average = state.ema_params and _update_average(state.ema_params, params, state.step, config.optim.ema_decay)
    state = TrainState(
        step=state.step + 1,
        params=merge(params, fixed_params),
        batch_stats=merge(_select(applies, new_stats, live_stats), fixed_stats),
        opt_state=opt_state,
        skipped=state.skipped + ~is_finite,
        ema_params=average and _select(applies, average, state.ema_params),
    )
    accuracy = hits / jnp.maximum(counted, 1)
    scalars = {"loss": loss, "accuracy": accuracy, "grad_norm": grad_norm, "skipped": state.skipped, "labelled": counted}
    return state, scalars


def _compute_gradient(
    loss_fn: BatchLoss, params: PyTree, batch_stats: PyTree, batch: Batch, key: Array, micro_batches: int
) -> tuple[tuple[Array, tuple[Array, PyTree]], PyTree]:
    """Compute the batch's loss and gradient in `micro_batches` equal parts, one after the other.

    The result has the same structure as with `jax.value_and_grad(loss_fn, has_aux=True)`. Each part's loss is divided by the
    full batch's count, so the parts' losses add up to the batch loss. BatchNorm normalises each part separately, but its
    running statistics are updated only once, with the mean over the parts.
    """
    value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)
    if micro_batches == 1:
        return value_and_grad(params, batch_stats, batch, key)

    def add(total: Any, numbered: tuple[Array, Batch]) -> tuple[Any, None]:
        i, part = numbered
        partial = value_and_grad(params, batch_stats, part, jax.random.fold_in(key, i))
        return jax.tree.map(jnp.add, total, partial), None

    # Image r of the batch goes to part r % micro_batches, so that the parts are the same on any mesh and every device has
    # images from every part.
    parts = {name: jnp.moveaxis(x.reshape(-1, micro_batches, *x.shape[1:]), 1, 0) for name, x in batch.items()}
    first = {name: x[0] for name, x in parts.items()}
    shapes = jax.eval_shape(value_and_grad, params, batch_stats, first, key)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    ((loss, (hits, stats)), grads), _ = jax.lax.scan(add, zeros, (jnp.arange(micro_batches), parts))
    return (loss, (hits, jax.tree.map(lambda x: x / micro_batches, stats))), grads


def _make_forward(config: Config, model: DeepLabV3, mesh: Mesh | None, rows: Extent | None) -> Forward:
    """Return the forward function for the global batch.

    If image rows are split across devices, each device computes its own rows.
    """
    forward = functools.partial(_forward, model=model)
    if mesh is None or rows is None:
        return functools.partial(forward, rows=None)
    by_rows = P(None, rows.axis)
    images = {name: by_rows if name == "image" else P() for name in _image_names(config)}
    specs = (P(), P(), P(), images, P())
    return compute_on_rows(forward, mesh, rows, specs, (by_rows, P()))


def _forward(
    params: PyTree,
    batch_stats: PyTree,
    fixed: dict[str, PyTree],
    batch: Batch,
    key: Array,
    *,
    model: DeepLabV3,
    rows: Extent | None,
) -> tuple[Outputs, PyTree]:
    """Return all heads' logits, resized to the image size, and the new batch statistics."""
    images = batch["image"]
    if "photometric" in batch:
        images = distort(images.astype(jnp.float32), batch["photometric"])
    images = normalize(images, model.config.mean, model.config.std)
    variables = {"params": merge(params, fixed["params"]), "batch_stats": batch_stats, "frozen_stats": fixed["frozen_stats"]}
    with interpreted_by(rows):
        outputs, updated = model.apply(variables, images, True, mutable=["batch_stats"], rngs={"dropout": key})
        resize = functools.partial(resize_like, like=images, align_corners=model.config.align_corners)
        outputs = Outputs(resize(outputs.logits), outputs.aux if outputs.aux is None else resize(outputs.aux))
    return outputs, updated.get("batch_stats", {})


def _compute_loss(
    params: PyTree,
    batch_stats: PyTree,
    batch: Batch,
    key: Array,
    *,
    counts: list[Array],
    config: Config,
    forward: Forward,
    fixed: dict[str, PyTree],
) -> tuple[Array, tuple[Array, PyTree]]:
    """Return this batch's share of the total loss, its number of correctly classified pixels and the new batch statistics.

    The total loss is the weighted sum over all losses and heads. Only the main head selects hard pixels, as in
    mmsegmentation's DeepLabV3 configs with a sampler. (The BiSeNetV2 and STDC configs also use a sampler for the auxiliary
    heads.)
    """
    outputs, batch_stats = forward(params, batch_stats, fixed, {name: batch[name] for name in _image_names(config)}, key)
    labels, mask = batch["label"], batch["mask"]
    aux_config = dataclasses.replace(config.loss, ohem_threshold=0.0)
    loss = jnp.zeros((), outputs.logits.dtype)
    for name, weight, count in zip(config.loss.terms, config.loss.weights, counts, strict=True):
        total = LOSSES[name](outputs.logits, labels, mask, config.loss).total
        if outputs.aux is not None:
            total += config.loss.aux_weight * LOSSES[name](outputs.aux, labels, mask, aux_config).total
        loss += weight * (total / count)
    hits = jnp.sum((jnp.argmax(outputs.logits, -1) == labels) & mask)
    return loss, (hits.astype(jnp.float32), batch_stats)


def _compute_divisors(labels: UInt8[Array, "n h w"], mask: Bool[Array, "n h w"], config: Config) -> list[Array]:
    """Return the divisor for each loss, computed over the full batch."""
    # The counts do not depend on the logits, so zeros are enough. XLA removes the unused operations.
    logits = jnp.zeros((*labels.shape, config.labels.num_classes))
    return [LOSSES[name](logits, labels, mask, config.loss).count for name in config.loss.terms]


def _make_mask(batch: Batch, rows: Extent | None) -> Bool[Array, "n h w"]:
    """Return a mask that is True for image pixels and False for padding.

    Padding consists of images added to fill the batch, and rows added below each image so that the rows
    split evenly across devices.
    """
    mask = jnp.broadcast_to(batch["valid"][:, None, None], batch["label"].shape)
    return mask & (jnp.arange(mask.shape[1]) < rows.height)[None, :, None] if rows else mask


def batch_names(config: Config) -> tuple[str, ...]:
    """Return the names of the batch entries that the training step reads."""
    return ("label", "valid", *_image_names(config))


def _image_names(config: Config) -> tuple[str, ...]:
    """Return the names of the batch entries that the forward pass reads."""
    return ("image", *["photometric"] * config.data.photometric)


def _update_average(average: PyTree, params: PyTree, step: Array, decay: float) -> PyTree:
    """Return the updated moving average of the parameters.

    The decay is min(decay, (1 + step) / (10 + step)), as in TensorFlow's ExponentialMovingAverage(num_updates), so the
    average follows the parameters faster during the first steps.
    """
    kept = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda old, new: kept * old + (1 - kept) * new, average, params)


def _select(applies: Array, new: PyTree, old: PyTree) -> PyTree:
    return jax.tree.map(functools.partial(jnp.where, applies), new, old)


def compile_train_step(mesh: Mesh, *, config: Config, model: DeepLabV3, optimizer: optax.GradientTransformation) -> Any:
    """Return `train_step`, jitted over `mesh` with its static arguments bound.

    The compiled step donates its input state.
    """
    replicated, platform = replicated_sharding(mesh), mesh.devices.flat[0].platform
    images = config.data.batch_size // mesh.shape["data"] // config.train.micro_batches

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        with compiling_for(platform, images, mesh), jax.threefry_partitionable(True):
            return train_step(state, batch, config=config, model=model, optimizer=optimizer, mesh=mesh)

    return jax.jit(
        step,
        in_shardings=(replicated, batch_shardings(mesh, batch_names(config))),
        out_shardings=(replicated, replicated),
        donate_argnums=0,
        compiler_options=lean_options(platform),
    )
