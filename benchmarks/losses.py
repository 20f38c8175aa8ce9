"""Measure the time and memory of each loss with its gradient, relative to the cross-entropy.

python benchmarks/losses.py [--height 512] [--width 1024]

The losses run in turn, and the shortest time of each counts. Memory is XLA's own figure for temporary arrays.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deeplab_jax.config import LossConfig
from deeplab_jax.losses import LOSSES

CLASSES, ROUNDS = 19, 8
CASES: dict[str, dict[str, Any]] = {
    "cross_entropy": {},
    "cross_entropy, class_weights": {"class_weights": (1.0,) * CLASSES},
    "cross_entropy, ohem_threshold=0.7": {"ohem_threshold": 0.7},
    "cross_entropy, relax_border=1": {"relax_border": 1},
    **{name: {} for name in LOSSES if name != "cross_entropy"},
}


def compile_loss(name: str, settings: dict[str, Any], arrays: tuple[jax.Array, ...]) -> tuple[Callable[..., Any], float]:
    """Return the compiled loss with its gradient, and its temporary memory relative to the logits."""

    def run(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> jax.Array:
        mean = LOSSES[name](logits, labels, mask, LossConfig(**settings))
        return mean.total / mean.count

    compiled = jax.jit(jax.value_and_grad(run)).lower(*arrays).compile()
    return compiled, compiled.memory_analysis().temp_size_in_bytes / arrays[0].nbytes


def main(height: int, width: int) -> None:
    """Print a table for one image with 16 x 16 blocks of labels."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, (1, height // 16, width // 16)).repeat(16, 1).repeat(16, 2).astype(np.uint8)
    logits = rng.normal(size=(*labels.shape, CLASSES)) + 3 * (labels[..., None] == np.arange(CLASSES))
    arrays = jnp.asarray(logits, jnp.float32), jnp.asarray(labels), jnp.ones(labels.shape, bool)
    programs = {name: compile_loss(name.split(",")[0], settings, arrays) for name, settings in CASES.items()}
    seconds = dict.fromkeys(programs, float("inf"))
    for _ in range(ROUNDS + 1):
        for name, (run, _) in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(run(*arrays))
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    print("| loss | ms | times the cross-entropy | memory, times the logits |\n| --- | --- | --- | --- |")
    for name, (_, memory) in programs.items():
        ratio = seconds[name] / seconds["cross_entropy"]
        print(f"| {name} | {seconds[name] * 1e3:.0f} | {ratio:.1f} | {memory:.1f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--height", type=int, default=512)
    parser.add_argument("--width", type=int, default=1024)
    main(**vars(parser.parse_args()))
