"""Measure the speed of training and inference for `gpu.py`, next to PyTorch."""

import argparse
import ast
import copy
import dataclasses
import functools
import importlib.util
import math
import os
import statistics
import time
from typing import Any

import inference as inference_sides
import networks
import numpy as np
import side_by_side
import train_step
from gpu_report import Report, Result, is_memory_error

Sides = dict[str, side_by_side.Make]
OURS, COMPILED, EAGER = "ours", "torch.compile", "eager"
FASTER, MFU = 1.2, 0.45  # the goals
# The fields of `ModelConfig` in which the networks differ from torchvision's DeepLabV3 with ResNet-50 at output stride 8.
NETWORKS: dict[str, dict[str, Any]] = {
    "resnet50": {},
    "plus": {"output_stride": 16, "decoder_width": 256, "fusion": "1x1", "aux_head": False},
    "mobilenetv3": {
        "backbone": "mobilenetv3_large",
        "output_stride": 16,
        "multi_grid": (1.0, 1.0, 1.0),
        "atrous_rates": (12, 24, 36),
    },
}
NARROW = {"backbone": "resnet18", "width": 8, "aspp_width": 8}


def has_torch() -> bool:
    """Return whether PyTorch can be measured."""
    return all(importlib.util.find_spec(name) for name in ("torch", "torchvision"))


def make_flags(args: argparse.Namespace, **fields: Any) -> argparse.Namespace:
    """Return the flags for `side_by_side` and `networks`, with `fields` added.

    `model` are `ModelConfig` fields, and `xla_flags` is added to XLA_FLAGS.
    """
    flags = {"depth": 50, "output_stride": 8, "dtype": "bfloat16", "output": "labels", "model": {}, "xla_flags": ""}
    flags |= {"rounds": args.rounds, "repeat": args.repeat, "warm_up": 1, "one_at_a_time": False}
    flags |= {"dry_run": args.dry_run, "in_process": args.in_process}
    if args.dry_run:
        flags |= {"rounds": 2, "repeat": 1, "warm_up": 0}
        model = fields.get("model", {})
        narrow = NARROW | model | ({"decoder_width": 8} if "decoder_width" in model else {})
        fields = fields if has_torch() else fields | {"model": narrow}
    return argparse.Namespace(**flags | fields)


def make_config(flags: argparse.Namespace) -> Any:
    """Return the config that the flags describe."""
    from deeplab_jax.models import validate

    config = networks.our_config(flags)
    return validate(dataclasses.replace(config, model=dataclasses.replace(config.model, **flags.model)))


def make_variables(config: Any) -> dict[str, Any]:
    """Return torchvision's variables if it has this network, and otherwise initial ones."""
    import jax

    from deeplab_jax.models import DeepLabV3
    from deeplab_jax.weights.sources import torchvision

    if all(getattr(config.model, field) in values for field, values in torchvision.required(config.model).items()):
        return networks.our_variables(config)
    model, images = DeepLabV3(config.model, config.labels.num_classes), np.zeros((1, 64, 64, config.model.channels), np.float32)
    return dict(jax.jit(lambda key: model.init(key, images, train=False))(jax.random.key(config.seed)))


def build_training(flags: argparse.Namespace) -> side_by_side.Side:
    """Return our training step."""
    # This runs before JAX is imported, unless the side shares its process.
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {'' if flags.in_process else flags.xla_flags}".strip()
    return train_step.build_step(make_config(flags), make_variables, flags)


def build_torch_training(flags: argparse.Namespace, *, compiled: bool) -> side_by_side.Side:
    """Return PyTorch's training step."""
    is_mobilenet = flags.model.get("backbone", "").startswith("mobilenet")
    side = train_step.build_torchvision(flags, compiled=compiled, make_network=make_mobilenet if is_mobilenet else None)
    return dataclasses.replace(side, device_peak=functools.partial(_release_memory, side))


def make_mobilenet(_: argparse.Namespace) -> Any:
    """Return torchvision's DeepLabV3 with MobileNetV3-Large."""
    import references

    return references.make_torchvision_mobilenet()


def _release_memory(side: side_by_side.Side) -> int | None:
    """Return the side's peak memory, and leave its unused memory to the other sides."""
    import torch

    peak = side.device_peak()
    torch.cuda.empty_cache()
    return peak


def measure(sides: Sides, flags: argparse.Namespace, images: int) -> Result:
    """Measure the sides in turns.

    Returns:
      Images per second, the ratios of our speed to the others', peak memory, seconds to the first result and errors by side.
    """
    process = side_by_side.InProcess if flags.in_process else side_by_side.Process
    results = side_by_side.measure(sides, flags, {flags.compared: math.inf}, process)
    measured = {name: entry for name, entry in results.items() if "failed" not in entry}
    seconds = {name: statistics.median(entry["seconds"]) for name, entry in measured.items()}
    ours = measured.get(OURS, {"seconds": []})["seconds"]
    return {
        "images/s": {name: images / value for name, value in seconds.items()},
        "times as fast": {
            name: statistics.median(theirs / mine for mine, theirs in zip(ours, entry["seconds"], strict=True))
            for name, entry in measured.items()
            if name != OURS and ours
        },
        "peak GiB": {name: max(entry["peak"]) / 2**30 for name, entry in measured.items()},
        "first result s": {name: entry["start"] for name, entry in measured.items()},
        "error": {name: max(entry["errors"].values()) for name, entry in measured.items() if name != OURS},
        "failed": {name: entry["failed"] for name, entry in results.items() if "failed" in entry},
        "sides": results,
    }


def training(args: argparse.Namespace, report: Report) -> None:
    """Measure the training step."""
    size, until = (32, 64) if args.dry_run else (512, 1024), report.end - 15
    rate = report.run("bfloat16 product", 0, measure_product, 256 if args.dry_run else 8192).get("TFLOP/s", math.nan)
    batch = report.run("batch size", 0, find_batch, args, size).get("batch", args.batch or 8)
    for network in args.networks:
        part = f"{network}, {size[0]}x{size[1]}"
        flags = make_flags(args, size=size, batch=batch, model=NETWORKS[network], compared="loss", until=until)
        result = report.run(part, 0 if args.dry_run else 40, measure_training, flags, network != "plus" and has_torch(), rate)
        batch = result.get("batch", batch)
    if not has_torch():
        report.run("PyTorch", 0, lambda: {"skipped": "torch and torchvision are not installed"})
    variants = {text: {"model": parse_fields(text)} for text in args.variants}
    variants |= {text: {"xla_flags": text} for text in args.xla_flags}
    for text, fields in variants.items():
        flags = make_flags(args, size=size, batch=batch, compared="loss", until=until, **fields)
        report.run(f"resnet50, {text}", 0 if args.dry_run else 40, measure_training, flags, False, rate)


def parse_fields(text: str) -> dict[str, Any]:
    """Parse fields of `ModelConfig`, such as "remat=(1,2) output_stride=16"."""
    pairs = (word.partition("=") for word in text.split())
    return {name: ast.literal_eval(value) for name, _, value in pairs}


def measure_training(flags: argparse.Namespace, with_torch: bool, rate: float) -> Result:
    """Measure the training step in turns with PyTorch's. If memory runs out, halve the batch.

    Args:
      flags: The flags from `make_flags`.
      with_torch: Whether to measure PyTorch.
      rate: The rate of a large product in TFLOP/s, to which the MFU is relative.
    """
    from deeplab_jax.models.cost import training_flops

    sides: Sides = {OURS: build_training}
    if with_torch:
        sides |= {} if flags.dry_run else {COMPILED: functools.partial(build_torch_training, compiled=True)}
        sides |= {EAGER: functools.partial(build_torch_training, compiled=False)}
    result = measure(sides, flags, flags.batch)
    if any(map(is_memory_error, result["failed"].values())) and flags.batch > 1:
        flags = copy.copy(flags)
        flags.batch //= 2
        return measure_training(flags, with_torch, rate)
    flops = training_flops(make_config(flags)) / flags.batch / 1e12
    result |= {"batch": flags.batch, "MFU": {name: flops * speed / rate for name, speed in result["images/s"].items()}}
    ratio, ours = result["times as fast"].get(COMPILED, math.nan), result["MFU"].get(OURS, math.nan)
    goal = {"goal": f"{FASTER} times torch.compile, MFU {MFU:.0%}", "met": ratio >= FASTER and ours >= MFU}
    return result | (goal if COMPILED in sides else {})


def measure_product(size: int) -> Result:
    """Measure the rate of a product of random bfloat16 matrices."""
    import jax
    import jax.numpy as jnp

    a, b = jax.random.normal(jax.random.key(0), (2, size, size), jnp.bfloat16)
    multiply = jax.jit(jnp.matmul)
    times = []
    for _ in range(6):
        start = time.perf_counter()
        for _ in range(10):
            product = multiply(a, b)
        jax.block_until_ready(product)
        times.append((time.perf_counter() - start) / 10)
    device = jax.devices()[0].device_kind
    return {"size": size, "TFLOP/s": 2 * size**3 / statistics.median(times[1:]) / 1e12, "device": device}


def find_batch(args: argparse.Namespace, size: tuple[int, int]) -> Result:
    """Return the largest power of two that should fit into memory for both implementations at once.

    They are measured in turns and keep their memory, so each gets half. PyTorch's eager mode needs about as much as ours.
    """
    import jax

    limit = (jax.devices()[0].memory_stats() or {}).get("bytes_limit")
    if args.batch or args.dry_run or not (limit and has_torch()):
        return {"batch": args.batch or (2 if args.dry_run else 16)}
    flags = make_flags(args, size=size, batch=4, compared="loss")
    process = side_by_side.Process(functools.partial(build_torch_training, compiled=False), flags)
    try:
        process.request("numbers")
        peak = process.request("peak")
    finally:
        process.close()
    return {"batch": 2 ** max(0, int(math.log2(limit / 2 / (peak / flags.batch)))), "GiB for 4 images": peak / 2**30}


def inference(args: argparse.Namespace, report: Report) -> None:
    """Measure the prediction of labels."""
    size = (64, 128) if args.dry_run else (1024, 2048)
    for dtype, batch in (("bfloat16", 8), ("bfloat16", 1), ("float32", 1), ("float32", 8)):
        if args.dry_run and (dtype, batch) != ("float32", 1):
            continue
        flags = make_flags(args, size=size, batch=batch, dtype=dtype, compared="labels", until=report.end - 10)
        report.run(f"{dtype}, batch {batch}", 0 if args.dry_run else 60, measure_inference, flags)
    if not has_torch():
        report.run("PyTorch", 0, lambda: {"skipped": "torch and torchvision are not installed"})
    if not has_onnx_on_gpu():
        report.run("ONNX", 0, lambda: {"skipped": "onnxruntime has no CUDAExecutionProvider"})


def measure_inference(flags: argparse.Namespace) -> Result:
    """Measure the prediction of labels in turns. The exported programs compute in float32."""
    sides: Sides = {OURS: build_inference}
    if has_torch():
        sides |= {EAGER if flags.dry_run else COMPILED: functools.partial(build_torch_inference, compiled=not flags.dry_run)}
    if flags.dtype == "float32":
        sides |= {"StableHLO": build_stablehlo} | ({"ONNX": build_onnx} if has_onnx_on_gpu() else {})
    result = measure(sides, flags, flags.batch)
    ratio = result["times as fast"].get(COMPILED, math.nan)
    return result | ({"goal": f"{FASTER} times torch.compile", "met": ratio >= FASTER} if COMPILED in sides else {})


def build_inference(flags: argparse.Namespace) -> side_by_side.Side:
    """Return our prediction of labels."""
    return inference_sides.build_program(make_config(flags), make_variables, flags)


def build_torch_inference(flags: argparse.Namespace, *, compiled: bool) -> side_by_side.Side:
    """Return PyTorch's prediction of labels. The argmax is part of the compiled function."""
    import torch

    network = networks.Torch(flags, train=False, compiled=False)
    image = network.image(networks.random_images(flags))

    def predict(image: Any) -> Any:
        return network.logits(image)["out"].argmax(1).to(torch.uint8)

    compute = torch.compile(predict) if compiled else predict

    @torch.no_grad()
    def run() -> Any:
        labels = compute(image)
        network.synchronize()
        return labels

    side = side_by_side.Side(lambda: {"labels": run().cpu().numpy()}, run, network.device_peak, network.versions())
    return dataclasses.replace(side, device_peak=functools.partial(_release_memory, side))


def _exported_network(flags: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """Return the network and its folded parameters, as `deeplab-jax export` stores them."""
    from deeplab_jax.evaluation.inference import evaluation_model
    from deeplab_jax.export.folding import fold

    config = make_config(flags)
    network = evaluation_model(config)
    network = dataclasses.replace(network, config=dataclasses.replace(network.config, aux_head=False, remat=()))
    return network, fold(make_variables(config), network)


def build_stablehlo(flags: argparse.Namespace) -> side_by_side.Side:
    """Return the exported StableHLO program."""
    import jax

    from deeplab_jax.export import loading, stablehlo

    exported = loading.load(stablehlo.serialize(*_exported_network(flags), "labels", {}))
    images = jax.device_put(networks.random_images(flags).transpose(0, 3, 1, 2))

    def run() -> Any:
        return jax.block_until_ready(exported.run(loading.PROGRAM, images))

    return side_by_side.Side(lambda: {"labels": np.asarray(run())}, run, networks.our_device_peak, networks.our_versions())


def has_onnx_on_gpu() -> bool:
    """Return whether onnxruntime can use an NVIDIA GPU."""
    if not all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime")):
        return False
    import onnxruntime

    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def build_onnx(flags: argparse.Namespace) -> side_by_side.Side:
    """Return the exported ONNX file in onnxruntime. Images and labels stay on the GPU."""
    import onnxruntime

    from deeplab_jax.export import onnx

    content = onnx.serialize(*_exported_network(flags), "labels", {})
    session = onnxruntime.InferenceSession(content, providers=["CUDAExecutionProvider"])
    images = np.ascontiguousarray(networks.random_images(flags).transpose(0, 3, 1, 2))
    binding = session.io_binding()
    binding.bind_ortvalue_input("images", onnxruntime.OrtValue.ortvalue_from_numpy(images, "cuda", 0))
    binding.bind_output("labels", "cuda")

    def run() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    def numbers() -> dict[str, np.ndarray]:
        run()
        return {"labels": binding.copy_outputs_to_cpu()[0]}

    return side_by_side.Side(numbers, run, lambda: None, {"onnxruntime": onnxruntime.__version__})
