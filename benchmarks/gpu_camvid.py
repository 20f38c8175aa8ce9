"""Train DeepLabV3 on CamVid for `gpu.py`, with images in the device's memory."""

import argparse
import dataclasses
import functools
import pathlib
import runpy
import time
from typing import Any

import gpu_speed
import numpy as np
from gpu_report import Report, Result, read_json

RECIPE = pathlib.Path(__file__).parent.parent / "configs" / "camvid_r50.py"
BATCH, EVAL_BATCH = 16, 16
EVALUATIONS = 8
PART = "DeepLabV3, ResNet-50"
END_SECONDS = 5  # for the last evaluation
START_SECONDS = 60  # for reading and compiling; only used to plan the number of steps
Images = dict[str, np.ndarray]  # "image" uint8 [n, h, w, 3] and "label" uint8 [n, h, w]


def camvid(args: argparse.Namespace, report: Report) -> None:
    """Train a network, and evaluate it on the way."""
    if not (args.camvid or args.dry_run):
        report.run("CamVid", 0, lambda: {"skipped": "there is no --camvid"})
        return
    report.run(PART, 0 if args.dry_run else START_SECONDS, train, args, report)


def make_config(args: argparse.Namespace) -> Any:
    """Return the recipe for a GPU, without DeepLabV3+'s decoder and colour distortion."""
    from deeplab_jax.models import validate

    config = runpy.run_path(str(RECIPE))["get_config"]()
    model = dataclasses.replace(config.model, decoder_width=0)
    data = dataclasses.replace(config.data, batch_size=BATCH, photometric=False)
    if args.dry_run:
        model = dataclasses.replace(model, **gpu_speed.NARROW, aux_head=False)
        data = dataclasses.replace(data, batch_size=2, crop_size=(32, 48))
    mesh, optim = dataclasses.replace(config.mesh, data=1), dataclasses.replace(config.optim, warmup_steps=100)
    return validate(dataclasses.replace(config, model=model, data=data, mesh=mesh, optim=optim))


def train(args: argparse.Namespace, report: Report) -> Result:
    """Train until the planned number of steps is reached or time runs out, and return the scores over time."""
    import jax

    from deeplab_jax.evaluation.inference import Evaluator
    from deeplab_jax.runtime.mesh import batch_shardings
    from deeplab_jax.training import begin
    from deeplab_jax.training.step import batch_names, compile_train_step

    start, config = time.monotonic(), make_config(args)
    steps = args.camvid_steps or (3 if args.dry_run else plan_steps(args, config, report.time_left()))
    setup = begin.set_up(config, steps)
    read = functools.partial(draw_scenes, config) if args.dry_run else functools.partial(read_split, args.camvid)
    images = {split: read(split) for split in ("train", "val")}
    on_device = jax.device_put(images["train"])
    sample = jax.jit(
        functools.partial(make_batch, config=config), out_shardings=batch_shardings(setup.mesh, batch_names(config))
    )
    state, evaluator = begin.create_state(setup, None), Evaluator(config, setup.mesh)
    step_fn = compile_train_step(setup.mesh, config=config, model=setup.model, optimizer=setup.optimizer)
    step_fn = step_fn.lower(state, sample(on_device, 0)).compile()
    score = functools.partial(evaluate, evaluator, images["val"])
    score({"params": state.params, "batch_stats": state.batch_stats})  # compile before the training starts
    result: Result = {"scores": [], "planned steps": steps, "start s": time.monotonic() - start}
    trained, turn = 0.0, time.monotonic()
    for step in range(1, steps + 1):
        state, scalars = step_fn(state, sample(on_device, step))
        if step % 10 == 0:
            jax.block_until_ready(scalars)  # otherwise the host would run ahead of the device
        is_last = step == steps or (not args.dry_run and report.time_left() < END_SECONDS)
        if is_last or step % max(1, steps // EVALUATIONS) == 0:
            loss, trained = float(scalars["loss"]), trained + time.monotonic() - turn
            scores = score({"params": state.params, "batch_stats": state.batch_stats})
            images_per_second, epochs = (step * config.data.batch_size / x for x in (trained, len(images["train"]["label"])))
            result |= {"images/s": images_per_second, "epochs": epochs}
            result["scores"].append({"step": step, "training s": trained, "loss": loss} | scores)
            turn = time.monotonic()
            report.update(PART, result)
        if is_last:
            break
    return result


def plan_steps(args: argparse.Namespace, config: Any, seconds: float) -> int:
    """Return the number of steps that fit, from the speed that stage training measured, or 1,000 without it."""
    from deeplab_jax.models.cost import training_flops

    parts = read_json(args.out / "training.json").get("parts", {})
    mfu = next((part["MFU"]["ours"] for part in parts.values() if "ours" in part.get("MFU", {})), None)
    if mfu is None:
        return 1000
    rate = mfu * parts["bfloat16 product"]["TFLOP/s"] * 1e12
    # The rest is for evaluations, augmentation and smaller images.
    return max(100, int(0.7 * (seconds - START_SECONDS) * rate / training_flops(config)))


def read_split(folder: pathlib.Path, split: str) -> Images:
    """Decode all images and labels of a split."""
    from PIL import Image

    from deeplab_jax.labels import CAMVID, IGNORE

    pairs = [line.split() for line in (folder / "list" / f"{split}.lst").read_text().splitlines()]
    image = np.stack([np.asarray(Image.open(folder / name).convert("RGB")) for name, _ in pairs])
    label = np.stack([np.asarray(Image.open(folder / name)) for _, name in pairs])
    return {"image": image, "label": np.where(label < CAMVID.num_classes, label, IGNORE).astype(np.uint8)}


def draw_scenes(config: Any, split: str) -> Images:
    """Return small images in which a block's colour tells its class."""
    random = np.random.default_rng(len(split))
    label = random.integers(0, config.labels.num_classes, (6, 5, 6), np.uint8).repeat(9, 1).repeat(9, 2)
    return {"image": np.asarray(config.labels.colors, np.uint8)[label], "label": label}


def make_batch(images: dict[str, Any], step: Any, *, config: Any) -> dict[str, Any]:
    """Return a batch of randomly scaled, mirrored crops. It is a function of the images and the step."""
    import jax
    import jax.numpy as jnp

    n, count = config.data.batch_size, images["label"].shape[0]
    # Every pass over the images has its own order.
    index = step * n + jnp.arange(n)
    order = jax.vmap(lambda epoch, i: jax.random.permutation(jax.random.key(epoch), count)[i])(index // count, index % count)
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(config.seed), i))(index)
    crop = jax.vmap(functools.partial(make_crop, config=config))
    image, label = crop(keys, images["image"][order], images["label"][order])
    return {"image": image, "label": label, "valid": jnp.ones(n, bool)}


def make_crop(key: Any, image: Any, label: Any, *, config: Any) -> tuple[Any, Any]:
    """Return a crop of an image, resized bilinearly, and of its label, by the nearest pixel.

    What lies outside the image has the mean colour and is ignored.
    """
    import jax
    import jax.numpy as jnp

    from deeplab_jax.labels import IGNORE

    u = jax.random.uniform(key, (4,))
    low, high = config.data.scale
    scale = low + (high - low) * u[0]
    centres, inside = [], []
    for axis in (0, 1):
        size, crop = label.shape[axis], config.data.crop_size[axis]
        offset = u[1 + axis] * (size * scale - crop)  # negative where the crop is larger than the resized image
        centre = (jnp.arange(crop) + 0.5 + offset) / scale
        centre = jnp.where(config.data.flip & (u[3] < 0.5), centre[::-1], centre) if axis else centre
        centres.append(centre)
        inside.append((centre >= 0) & (centre < size))
    is_inside = inside[0][:, None] & inside[1][None, :]
    rows, columns = (interpolation_matrix(c, size) for c, size in zip(centres, label.shape, strict=True))
    pixels = jnp.einsum("ih,jw,hwc->ijc", rows, columns, image.astype(jnp.float32))
    pixels = jnp.where(is_inside[..., None], pixels, jnp.array(config.model.mean))
    y, x = (jnp.clip(jnp.floor(c).astype(int), 0, size - 1) for c, size in zip(centres, label.shape, strict=True))
    labels = jnp.where(is_inside, label[y[:, None], x[None, :]], IGNORE)
    return jnp.round(pixels).astype(jnp.uint8), labels.astype(jnp.uint8)


def interpolation_matrix(centres: Any, size: int) -> Any:
    """Return the weights [crop, size] that interpolate linearly between pixel centres, which are at 0.5, 1.5 and so on."""
    import jax.numpy as jnp

    position = jnp.clip(centres - 0.5, 0, size - 1)
    return jnp.maximum(0, 1 - jnp.abs(position[:, None] - jnp.arange(size)[None, :]))


def evaluate(evaluator: Any, images: Images, variables: dict[str, Any]) -> Result:
    """Return the mean IoU and the pixel accuracy over all images."""
    from deeplab_jax.evaluation import metrics
    from deeplab_jax.runtime.mesh import place

    count = len(images["label"])
    totals = metrics.empty_totals(evaluator.num_classes)
    for first in range(0, count, EVAL_BATCH):
        index = np.arange(first, first + EVAL_BATCH)
        batch = {name: values[index % count] for name, values in images.items()} | {"valid": index < count}
        counts = evaluator(variables, place(batch, evaluator.mesh, evaluator.row_unit), images["label"].shape[1])[1]
        totals = metrics.add_totals(totals, counts)
    return {name: metrics.OVERALL_METRICS[name].compute(totals) for name in ("miou", "pixel_accuracy")}
