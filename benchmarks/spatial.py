"""Compare a training step whose image rows are split over virtual CPU devices with the same step on one device.

python benchmarks/spatial.py --backbone=resnet18 --size 1025 2049 --spatial 2 4

Without --run, the steps are compiled but not run, and only their memory is compared. With --run, the loss and the gradient
are also compared. The gradient is read from the optimizer's momentum after the first step.
"""

import argparse
import os

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--backbone", default="resnet18")
parser.add_argument("--width", type=int, default=64)
parser.add_argument("--output_stride", type=int, default=8)
parser.add_argument("--size", type=int, nargs=2, default=(1024, 2048))
parser.add_argument("--batch", type=int, default=1)
parser.add_argument("--spatial", type=int, nargs="+", default=(2, 4))
parser.add_argument("--remat", type=int, nargs="*", default=())
parser.add_argument("--dtype", default="float32")
parser.add_argument("--aux", action="store_true")
parser.add_argument("--run", action="store_true", help="run a step and compare its loss and gradient")
ARGS = parser.parse_args()
os.environ["JAX_NUM_CPU_DEVICES"] = str(max(ARGS.spatial))

import jax
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

from deeplab_jax.config import Config, DataConfig, MeshConfig, ModelConfig, OptimConfig
from deeplab_jax.models import DeepLabV3
from deeplab_jax.runtime.mesh import make_mesh, place, replicated_sharding
from deeplab_jax.training.optimizer import make_optimizer
from deeplab_jax.training.state import init_state
from deeplab_jax.training.step import compile_train_step


def measure(spatial: int) -> dict:
    """Return XLA's peak bytes per device and, with --run, the loss, the gradient norm and the gradient."""
    config = Config(
        model=ModelConfig(
            backbone=ARGS.backbone,
            width=ARGS.width,
            output_stride=ARGS.output_stride,
            aux_head=ARGS.aux,
            dtype=ARGS.dtype,
            remat=tuple(ARGS.remat),
        ),
        data=DataConfig(crop_size=tuple(ARGS.size)),
        optim=OptimConfig(weight_decay=0.0),
    )
    mesh = make_mesh(MeshConfig(data=1, spatial=spatial))
    model, optimizer = DeepLabV3(config.model, config.labels.num_classes), make_optimizer(config.optim, 100)
    init = jax.jit(lambda: init_state(model, optimizer, 0), out_shardings=replicated_sharding(mesh))
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 20, (ARGS.batch, ARGS.size[0] // 64 + 1, ARGS.size[1] // 64 + 1))
    label = blocks.repeat(64, 1).repeat(64, 2)[:, : ARGS.size[0], : ARGS.size[1]].astype(np.uint8)
    batch = {
        "image": rng.integers(0, 256, (*label.shape, 3), np.uint8),
        "label": np.where(label < 19, label, 255).astype(np.uint8),
        "valid": np.ones(ARGS.batch, bool),
    }
    state, placed = init(), place(batch, mesh, config.model.output_stride)
    compiled = compile_train_step(mesh, config=config, model=model, optimizer=optimizer).lower(state, placed).compile()
    memory = compiled.memory_analysis()
    peak = memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    if not ARGS.run:
        return {"bytes": peak}
    state, scalars = compiled(state, placed)
    gradient = np.concatenate([np.asarray(x).ravel() for x in jax.tree.leaves(optax.tree.get(state.opt_state, "trace"))])
    return {"bytes": peak, "gradient": gradient} | {name: float(x) for name, x in scalars.items()}


def main() -> None:
    """Print one row per device count, with the deviations from the results on one device."""
    baseline = measure(1)
    table = Table("devices", "GiB per device", "ratio", "loss", "gradient norm", "|g - g1| / |g1|")
    for spatial in (1, *ARGS.spatial):
        row = baseline if spatial == 1 else measure(spatial)
        cells = [str(spatial), f"{row['bytes'] / 2**30:.2f}", f"{baseline['bytes'] / row['bytes']:.2f}"]
        if ARGS.run:
            for name in ("loss", "grad_norm"):
                cells.append(f"{row[name]:.6f} ({row[name] / baseline[name] - 1:+.1e})")
            difference = np.linalg.norm(row["gradient"] - baseline["gradient"]) / np.linalg.norm(baseline["gradient"])
            cells.append(f"{difference:.1e}")
        table.add_row(*cells)
    Console().print(f"{ARGS.backbone} output stride {ARGS.output_stride}, {ARGS.batch} x {ARGS.size[0]} x {ARGS.size[1]}")
    Console().print(table)


if __name__ == "__main__":
    main()
