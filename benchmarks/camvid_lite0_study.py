"""Define the study behind configs/camvid_lite0.py: short runs with a few changes each, and one drive held out.

pip install -e ".[lite0]"
grep -v 0006R0 CAMVID/list/train.lst > CAMVID/list/without0006.lst
grep 0006R0 CAMVID/list/train.lst > CAMVID/list/drive0006.lst
python benchmarks/sweep.py benchmarks/camvid_lite0_study.py --root CAMVID --out runs/camvid_lite0_study
python eval.py --config=configs/stored.py:RUN --config.data.root=CAMVID --config.eval.split=drive0006 --checkpoint=RUN

All frames of val are from a drive that train has, too. The drive 0006R0 has other streets. camvid.md shows the results.
"""

import shlex
from collections.abc import Mapping
from typing import Any

RECIPE = "configs/camvid_lite0.py"

_SHORT = {"data.train_split": "without0006", "train.steps": 360, "train.epochs": 0.0, "train.eval_every_epochs": 0.0}
_SGD = {"optim.name": "sgd", "optim.lr": 0.05, "optim.weight_decay": 1e-4}
_CROSS_ENTROPY = {"loss.terms": ("cross_entropy",), "loss.weights": (1.0,)}
_PHOTOMETRIC = {"data.photometric": True}
_LONG = {"train.steps": 1330}
_SEPARABLE = {"model.aspp_conv": "depthwise+1x1", "model.decoder_conv": "depthwise+1x1"}


def _flags(fields: Mapping[str, Any]) -> str:
    return shlex.join(f"--config.{name}={value}" for name, value in (_SHORT | dict(fields)).items())


ROWS = {
    "chosen": _flags({}),
    "backbone x 0.3": _flags({"optim.lr_factors": (("backbone", 0.3),)}),
    "photometric": _flags(_PHOTOMETRIC),
    "no class weights": _flags({"loss.class_weights": ()}),
    "stride 16": _flags({"model.output_stride": 16}),
    "EMA": _flags({"optim.ema_decay": 0.98}),
    "heads of 192": _flags({"model.aspp_width": 192, "model.decoder_width": 192}),
    "1330 steps": _flags(_LONG),
    "1330 steps, photometric": _flags(_LONG | _PHOTOMETRIC),
    "SGD": _flags(_SGD),
    "SGD, cross-entropy": _flags(_SGD | _CROSS_ENTROPY),
    "SGD, cross-entropy, photometric": _flags(_SGD | _CROSS_ENTROPY | _PHOTOMETRIC),
    "SGD, separable heads of 128": _flags(_SGD | _SEPARABLE | {"model.aspp_width": 128, "model.decoder_width": 128}),
    "SGD, stride 16": _flags(_SGD | {"model.output_stride": 16}),
    "SGD, scale 0.5 to 2, photometric": _flags(_SGD | _PHOTOMETRIC | {"data.scale": (0.5, 2.0)}),
    "SGD, all trained": _flags(_SGD | _CROSS_ENTROPY | {"optim.lr": 0.02, "optim.frozen": ()}),
}
