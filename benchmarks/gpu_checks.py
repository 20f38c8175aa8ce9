"""Compare results on a GPU with those of other devices and runs, for `gpu.py`."""

import argparse
import contextlib
import dataclasses
import functools
import hashlib
import os
import pathlib
import statistics
import unittest.mock
from collections.abc import Iterator
from typing import Any

import gpu_speed
import networks
import numpy as np
import side_by_side
from gpu_report import Report, Result
from networks import fill

GOLDEN = pathlib.Path(fill.__file__).parent / "golden"
# The most different networks come first, in case the time is too short for all. The sizes show all taps of large atrous rates.
FIRST = ("torchvision_r50_321x513", "mmseg_r18_321x513", "torchvision_mobilenetv3_97x641", "mmseg_r50_321x513")
PRECISIONS = {"float32": ("float32", "highest"), "TF32": ("float32", "default"), "bfloat16": ("bfloat16", "default")}
MAX_ERROR = 1e-4
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
STEPS = 20


def parity(args: argparse.Namespace, report: Report) -> None:
    """Compare logits with the golden files, and a training step with the CPU's."""
    names = [path.stem for path in GOLDEN.glob("*x*.npz")]
    names = ["mmseg_r18_129x97"] if args.dry_run else [*FIRST, *sorted(set(names) - set(FIRST))]
    needed = 0 if args.dry_run else 15
    report.run(f"logits of {names[0]}", needed, compare_logits, names[0], tuple(PRECISIONS))
    for smooth in (False,) if args.in_process else (False, True):
        text = "training step, GPU and CPU" + (", smooth functions" if smooth else "")
        report.run(text, 2 * needed, compare_steps, args.dry_run, smooth)
    for name in names[1:]:
        precisions = tuple(PRECISIONS) if name in FIRST else ("float32",)
        report.run(f"logits of {name}", needed, compare_logits, name, precisions)


def compare_logits(name: str, precisions: tuple[str, ...]) -> Result:
    """Return the largest relative error of a golden network's outputs at each precision."""
    import jax

    from deeplab_jax.evaluation.inference import evaluation_model
    from deeplab_jax.models import normalize

    golden = np.load(GOLDEN / f"{name}.npz")
    config, variables = import_golden(golden)
    image = fill.image(*map(int, name.rsplit("_", 1)[1].split("x")))
    errors = {}
    for precision in precisions:
        dtype, products = PRECISIONS[precision]
        model = evaluation_model(dataclasses.replace(config, model=dataclasses.replace(config.model, dtype=dtype)))

        def run(variables: Any, image: Any, model: Any = model) -> Any:
            return model.apply(variables, normalize(image, model.config.mean, model.config.std), train=False)

        with jax.default_matmul_precision(products):
            outputs = {key: np.asarray(y) for key, y in jax.jit(run)(variables, image)._asdict().items() if y is not None}
        errors[precision] = max(side_by_side.relative_error(y[:, ::3, ::3], golden[key]) for key, y in outputs.items())
    return errors | {"goal": f"float32 {MAX_ERROR:g}", "met": errors["float32"] <= MAX_ERROR}


def import_golden(golden: Any) -> tuple[Any, dict[str, Any]]:
    """Return a golden network's config and variables."""
    from deeplab_jax.weights import convert, names
    from deeplab_jax.weights.recognize import recognize
    from deeplab_jax.weights.state_dicts import StateDict

    shapes = {str(name): tuple(map(int, shape.split())) for name, shape in zip(golden["names"], golden["shapes"], strict=True)}
    state = StateDict(f"{golden['published']}.safetensors", fill.fill(shapes), {})
    network = recognize(state)
    return network.config, names.unflatten(convert.to_variables(state, network)[0])


def compare_steps(dry_run: bool, smooth: bool) -> Result:
    """Return the relative errors of a float32 training step on the default device, compared with the CPU.

    An activation near 0 can round to the other side of 0, which changes the gradient in all earlier layers (see
    tests/parity/train_step.py). With `smooth`, all activations are smooth, so the gradient agrees, too.
    """
    import jax

    flags = argparse.Namespace(depth=50, output_stride=8, size=(33, 65) if dry_run else (129, 193), batch=4, dtype="float32")
    flags.model = {"backbone": "resnet18"} | (gpu_speed.NARROW if dry_run else {})
    with make_smooth() if smooth else contextlib.nullcontext(), jax.default_matmul_precision("highest"):
        ours, expected = (run_step(flags, device) for device in (jax.devices()[0], jax.devices("cpu")[0]))
    errors = {name: side_by_side.relative_error(ours[name], expected[name]) for name in expected}
    bounded = errors if smooth else {"loss": errors["loss"]}
    goal = f"{' and '.join(bounded) if len(bounded) < len(errors) else 'all'} {MAX_ERROR:g}"
    return errors | {"goal": goal, "met": max(bounded.values()) <= MAX_ERROR}


@contextlib.contextmanager
def make_smooth() -> Iterator[None]:
    """Replace ReLU and max pooling with smooth functions in networks traced in this context."""
    import flax

    from deeplab_jax.models.backbones import resnet

    def average(x: Any) -> Any:
        return flax.linen.avg_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))

    with (
        unittest.mock.patch.object(flax.linen, "relu", flax.linen.silu),
        unittest.mock.patch.object(resnet, "add_relu", lambda x, shortcut: flax.linen.silu(x + shortcut)),
        unittest.mock.patch.object(resnet, "max_pool_3x3", average),
    ):
        yield


def run_step(flags: argparse.Namespace, device: Any) -> dict[str, np.ndarray]:
    """Run a training step on a device, and return the loss and the new values, each kind as one vector."""
    import jax
    import optax

    from deeplab_jax.runtime.mesh import place, replicated_sharding
    from deeplab_jax.training import begin
    from deeplab_jax.training.step import compile_train_step

    config = gpu_speed.make_config(flags)
    setup = begin.set_up(config, 100, [device])
    # The CPU draws the initial values for both devices.
    state = begin.create_state(begin.set_up(config, 100, jax.devices("cpu")[:1]), None)
    state = jax.device_put(jax.tree.map(np.asarray, state), replicated_sharding(setup.mesh))
    before = to_vector(state.params)
    step = compile_train_step(setup.mesh, config=config, model=setup.model, optimizer=setup.optimizer)
    state, scalars = step(state, place(make_batch(flags), setup.mesh, config.model.output_stride))
    # After the first step, the momentum equals the gradient plus the weight decay.
    momentum = to_vector(optax.tree.get(state.opt_state, "trace"))
    return {
        "loss": np.asarray(scalars["loss"]),
        "gradient": momentum - config.optim.weight_decay * before,
        "parameters": to_vector(state.params),
        "statistics": to_vector(state.batch_stats),
    }


def make_batch(flags: argparse.Namespace) -> dict[str, np.ndarray]:
    """Return a random batch."""
    image, label = networks.random_images(flags), networks.random_labels(flags)
    return {"image": image, "label": label, "valid": np.ones(flags.batch, bool)}


def to_vector(tree: Any) -> np.ndarray:
    """Return all values of a tree."""
    import jax

    return np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(tree)])


def determinism(args: argparse.Namespace, report: Report) -> None:
    """Run the same training steps twice with and twice without deterministic kernels."""
    size, batch = ((32, 64), 2) if args.dry_run else ((256, 512), 8)
    make_flags = functools.partial(gpu_speed.make_flags, args, size=size, batch=batch, output_stride=16, repeat=10)
    # XLA reads its flags once per process.
    flags = {name: make_flags(xla_flags=name) for name in ([""] if args.in_process else [DETERMINISTIC, ""])}
    process = side_by_side.InProcess if args.in_process else side_by_side.Process
    # All four compile at the same time. They are measured one after the other.
    runs = {name: [process(build_repeated_steps, each) for _ in range(2)] for name, each in flags.items()}
    try:
        results = {name: report.run(name or "without flags", 0, compare_runs, each, name) for name, each in runs.items()}
    finally:
        for each in runs.values():
            for run in each:
                run.close()
    seconds = {name: result["seconds per step"] for name, result in results.items() if "seconds per step" in result}
    if len(seconds) == 2:
        report.run("cost", 0, lambda: {"times as long": seconds[DETERMINISTIC] / seconds[""]})


def compare_runs(runs: list[side_by_side.Process], flags: str) -> Result:
    """Return the digests of the runs' final parameters, whether they are equal, and the seconds per step."""
    digests = [run.request("numbers")[0]["digest"].tobytes().hex()[:16] for run in runs]
    seconds = statistics.median([run.request("seconds") for _ in range(3) for run in runs])
    equal = len(set(digests)) == 1
    return {"seconds per step": seconds, "equal": equal, "digests": digests} | (
        {"goal": "equal bits", "met": equal} if flags else {}
    )


def build_repeated_steps(flags: argparse.Namespace) -> side_by_side.Side:
    """Return a training run. Its numbers are the digest of the parameters after `STEPS` steps."""
    # This runs before JAX is imported, unless the side shares its process.
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {'' if flags.in_process else flags.xla_flags}".strip()
    import jax

    from deeplab_jax.runtime.mesh import place
    from deeplab_jax.training import begin
    from deeplab_jax.training.step import compile_train_step

    config = gpu_speed.make_config(flags)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, dropout=0.1, aux_dropout=0.1))
    setup = begin.set_up(config, 1000)
    state = [begin.create_state(setup, None)]
    step = compile_train_step(setup.mesh, config=config, model=setup.model, optimizer=setup.optimizer)
    batch = place(make_batch(flags), setup.mesh, config.model.output_stride)
    step = step.lower(state[0], batch).compile()

    def run() -> None:
        state[0] = jax.block_until_ready(step(state[0], batch)[0])

    def numbers() -> dict[str, np.ndarray]:
        for _ in range(2 if flags.dry_run else STEPS):
            run()
        return {"digest": np.frombuffer(hashlib.sha256(to_vector(state[0].params).tobytes()).digest(), np.uint8)}

    return side_by_side.Side(numbers, run, lambda: None, networks.our_versions())
