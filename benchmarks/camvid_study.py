"""Define the CamVid study: its baseline recipe and the rows to train. camvid.md shows the results.

python benchmarks/sweep.py benchmarks/camvid_study.py --root CAMVID --out runs/camvid_study --table camvid_table.md
"""

import shlex
from collections.abc import Mapping
from typing import Any

from deeplab_jax.config import Config, DataConfig, EvalConfig, ModelConfig, OptimConfig, TrainConfig
from deeplab_jax.labels import CAMVID

RECIPE = "benchmarks/camvid_study.py"


def get_config() -> Config:
    """Return the baseline recipe (published widths, equal class weights). Its training time sets the study's budget."""
    return Config(
        labels=CAMVID,
        model=ModelConfig(backbone="resnet18", output_stride=16),
        data=DataConfig(batch_size=8, crop_size=(240, 320)),
        optim=OptimConfig(lr=0.02, weight_decay=1e-4),
        train=TrainConfig(epochs=20, log_every=10, eval_every=0, save_every=50),
        eval=EvalConfig(batch_size=4),
    )


_BATCH_4 = {"data.batch_size": 4}
_NARROW = _BATCH_4 | {"model.width": 32, "model.aspp_width": 64, "model.decoder_width": 32}
_MILD = {"data.scale": (0.75, 1.5)}
_STRIDE_32 = {"model.output_stride": 32}
# Chosen by hand to be close to sqrt(road pixels / class pixels), but at most 7.5.
_WEIGHTS = {"loss.class_weights": (1.5, 1.0, 7.5, 1.0, 3.0, 1.6, 7.0, 5.0, 3.5, 7.5, 7.5)}
# The rounded square roots of _WEIGHTS.
_SOFTER = {"loss.class_weights": (1.2, 1.0, 2.7, 1.0, 1.7, 1.3, 2.6, 2.2, 1.9, 2.7, 2.7)}
_EQUAL: dict[str, Any] = {"loss.class_weights": ()}
_ADAMW = {"optim.name": "adamw", "optim.lr": 0.002, "optim.weight_decay": 0.05, "optim.warmup_steps": 20}
_DICE = {"loss.terms": ("cross_entropy", "dice"), "loss.weights": (1.0, 1.0)}
# The best with SGD and the cross-entropy.
_SGD = _NARROW | _WEIGHTS | _MILD | _STRIDE_32
_CHOSEN = _SGD | _ADAMW | _DICE


def _flags(epochs: float, fields: Mapping[str, Any]) -> str:
    return shlex.join(f"--config.{field}={value}" for field, value in ({"train.epochs": epochs} | fields).items())


# These rows were planned to take a quarter of the budget. camvid.md reports how long they actually took.
QUARTER = {
    "plain, quarter": _flags(5, {}),
    "batch 4": _flags(5, _BATCH_4),
    "batch 4, weights": _flags(5, _BATCH_4 | _WEIGHTS),
    "narrow": _flags(11.5, _NARROW),
    "narrow, weights": _flags(11.5, _NARROW | _WEIGHTS),
    "narrow, weights, mild": _flags(11.5, _NARROW | _WEIGHTS | _MILD),
    "narrow, softer, mild": _flags(11.5, _NARROW | _SOFTER | _MILD),
    "narrow, softer, mild, stride 32": _flags(15, _NARROW | _SOFTER | _MILD | _STRIDE_32),
}
# The best row with SGD cut to a quarter of its steps, and variants of it with one change each.
VARIANTS = {
    "SGD, quarter": _flags(8, _SGD),
    "AdamW and Dice": _flags(8, _CHOSEN),
    "no weights": _flags(8, _SGD | _EQUAL),
    "OHEM": _flags(8, _SGD | _EQUAL | {"loss.ohem_threshold": 0.7, "loss.ohem_min_kept": 10_000}),
    "EMA": _flags(8, _SGD | {"optim.ema_decay": 0.99}),
    "label smoothing": _flags(8, _SGD | {"loss.label_smoothing": 0.05}),
    "balanced windows": _flags(8, _SGD | {"data.class_balanced": 0.5}),
    "photometric": _flags(8, _SGD | {"data.photometric": True}),
    "large crops": _flags(8, _SGD | {"data.crop_size": (360, 480), "data.batch_size": 2}),
    "small crops": _flags(8, _SGD | {"data.crop_size": (180, 240), "data.batch_size": 8}),
    "multi-grid": _flags(8, _SGD | {"model.multi_grid": (1.0, 2.0)}),
    "no decoder": _flags(8, _SGD | {"model.decoder_width": 0, "model.output_stride": 16}),
    "faster": _flags(8, _SGD | {"optim.lr": 0.05, "optim.warmup_steps": 100}),
}
FULL = {
    "plain": "",
    "narrow, weights, mild, stride 32": _flags(32, _SGD),
    "narrow, softer, mild, stride 32, whole": _flags(32, _SGD | _SOFTER),
    "AdamW and Dice, whole": _flags(32, _CHOSEN),
    "AdamW and Dice, four times": _flags(128, _CHOSEN),
}
ROWS = QUARTER | VARIANTS | FULL
CHOSEN = "AdamW and Dice, whole"  # the same as configs/camvid_r18.py
