"""Measure the package on one NVIDIA GPU (H100 or H200) in less than 9 minutes.

python benchmarks/gpu.py --out runs/gpu --camvid CAMVID
python benchmarks/gpu.py --out runs/gpu --dry-run

The stages run one after the other, each in its own process with a time limit, so a failure or hang in one does not affect the
others. A stage writes OUT/STAGE.json after each of its parts, and skips the parts for which too little time is left:

  parity       logits of tests/parity/golden in float32, TF32 and bfloat16, and a training step on the GPU and the CPU
  training     the training step in bfloat16, next to torch.compile and PyTorch's eager mode
  inference    labels at 1024x2048, next to torch.compile, and the exported program
  determinism  whether two runs end with the same bits, with and without --xla_gpu_deterministic_ops, and what that costs
  camvid       DeepLabV3 with ResNet-50 trained from scratch on CamVid in the remaining time

CAMVID is a folder with list/train.lst and list/val.lst, whose lines name an image and its label. At the end, a table shows all
results in OUT. --stages runs some of them, and --dry-run runs them with tiny sizes on any device.

deeplab_jax need not be installed, and neither TensorFlow, tensorflow-datasets, tyro, ml_collections nor tensorboardX is needed.
The other dependencies are jax, flax, optax, orbax-checkpoint, etils, numpy, ml_dtypes, absl-py, rich, pillow, safetensors,
huggingface_hub, jinja2, jaxtyping and platformdirs. If some are missing and cannot be installed, bring them along in a folder
(`pip install --no-deps --target FOLDER platformdirs jaxtyping wadler-lindig`) and add it to PYTHONPATH. Without torch and
torchvision, only this package is measured.
"""

import argparse
import importlib.metadata
import os
import pathlib
import sys
import time

import gpu_camvid
import gpu_checks
import gpu_report
import gpu_speed
from side_by_side import positive

ROOT = pathlib.Path(__file__).parent.parent

STAGES = {
    "parity": gpu_checks.parity,
    "training": gpu_speed.training,
    "inference": gpu_speed.inference,
    "determinism": gpu_checks.determinism,
    "camvid": gpu_camvid.camvid,
}
# Seconds. Stage camvid gets all of the remaining time, and the others leave it at least its limit.
LIMITS = {"parity": 70, "training": 215, "inference": 90, "determinism": 75, "camvid": 75}
ENVIRONMENT = {
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # JAX and PyTorch share the GPU
    "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.9",
    # A program from the cache would start sooner, and keep the kernels that were selected for it.
    "JAX_ENABLE_COMPILATION_CACHE": "0",
}
# A dry run does not need fast programs, and these compile several times as fast.
DRY_ENVIRONMENT = {"XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"}
if importlib.metadata.version("jaxlib").startswith("0.10."):
    DRY_ENVIRONMENT["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"


def parse_flags(words: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder for the results")
    parser.add_argument("--camvid", type=pathlib.Path, help="CamVid folder; without it, stage camvid does not run")
    parser.add_argument("--stages", type=lambda text: text.split(","), default=list(STAGES), metavar="A,B")
    parser.add_argument("--minutes", type=float, default=8.75, help="time for all stages")
    parser.add_argument("--limits", nargs="+", default=[], metavar="STAGE=SECONDS", help="other time limits for single stages")
    parser.add_argument("--networks", nargs="+", choices=gpu_speed.NETWORKS, help="networks of stage training")
    parser.add_argument("--batch", type=positive, help="training batch size, instead of the largest power of two that fits")
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--repeat", type=positive, default=5, help="number of runs in one timing")
    parser.add_argument(
        "--variants", nargs="+", default=[], metavar="FIELDS", help='variants of training, such as "remat=(1,2)" (ModelConfig)'
    )
    parser.add_argument(
        "--xla-flags", action="append", default=[], metavar="FLAGS", help="a variant of training with these XLA_FLAGS"
    )
    parser.add_argument("--camvid-steps", type=positive, help="number of steps, instead of as many as the time allows")
    parser.add_argument("--dry-run", action="store_true", help="use tiny sizes and generated images, on any device")
    parser.add_argument("--in-process", action="store_true", help="do not start processes (with --dry-run)")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args(words)
    if unknown := set(args.stages) - set(STAGES):
        parser.error(f"--stages: there is no stage {min(unknown)!r}. Choose from {', '.join(STAGES)}.")
    args.networks = args.networks or list(gpu_speed.NETWORKS)[: 1 if args.dry_run else None]
    args.limits = LIMITS | {name: float(value) for name, _, value in (word.partition("=") for word in args.limits)}
    if args.in_process and not args.dry_run:
        parser.error("--in-process needs --dry-run.")
    return args


def run_stage(name: str, args: argparse.Namespace, seconds: float) -> None:
    """Run one stage in this process."""
    report = gpu_report.Report(args.out, name, seconds)
    STAGES[name](args, report)
    report.finish()


def run_apart(name: str, args: argparse.Namespace, words: list[str], seconds: float) -> None:
    """Run one stage in a process of its own. If it does not succeed, add this to the results that it left."""
    command = [sys.executable, os.path.abspath(__file__), *words, "--stage", name, "--seconds", f"{seconds:.0f}"]
    if ending := gpu_report.run_command(command, seconds):
        path = args.out / f"{name}.json"
        gpu_report.write_json(path, {"stage": name} | gpu_report.read_json(path) | {"status": ending})


def main(words: list[str]) -> None:
    """Run the stages and show their results."""
    args = parse_flags(words)
    args.out.mkdir(parents=True, exist_ok=True)
    sys.path.insert(1, str(ROOT))  # deeplab_jax, also where it is not installed
    for variable, value in (DRY_ENVIRONMENT if args.dry_run else ENVIRONMENT).items():
        os.environ.setdefault(variable, value)
    if args.stage:
        return run_stage(args.stage, args, args.seconds)
    end = time.monotonic() + 60 * args.minutes
    for i, name in enumerate(args.stages):
        (args.out / f"{name}.json").unlink(missing_ok=True)
        left = end - time.monotonic() - ("camvid" in args.stages[i + 1 :]) * args.limits["camvid"]
        seconds = max(left if name == "camvid" else min(args.limits[name], left), 1.0)
        print(f"\n{name}, at most {seconds:.0f} s", flush=True)
        run_stage(name, args, seconds) if args.in_process else run_apart(name, args, words, seconds)
    gpu_report.show(args.out, [name for name in STAGES if (args.out / f"{name}.json").exists()])
    return None


if __name__ == "__main__":
    main(sys.argv[1:])
