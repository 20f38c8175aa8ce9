"""Rows of the CamVid study, each at a quarter of the time that configs/camvid_r18.py takes; camvid.md has what they gave.

python benchmarks/sweep.py benchmarks/camvid_study.py --root CAMVID --out runs/camvid_study --table camvid_table.md
"""

RECIPE = "configs/camvid_r18.py"

_WEIGHTS = "--config.loss.class_weights='(1.5,1.0,7.5,1.0,3.0,1.6,7.0,5.0,3.5,7.5,7.5)'"
_BATCH_4 = "--config.data.batch_size=4"
_NARROW = "--config.model.width=32 --config.model.aspp_width=64 --config.model.decoder_width=32"


def _quarter(flags: str, epochs: float = 5) -> str:
    return f"--config.train.epochs={epochs:g} --config.train.eval_every=0 {flags}".strip()


ROWS = {
    "recipe": _quarter(""),
    "batch 4": _quarter(_BATCH_4),
    "batch 4, weights": _quarter(f"{_BATCH_4} {_WEIGHTS}"),
    # A step of the narrow network takes 0.43 times as long: more epochs in the same time.
    "batch 4, narrow V3+": _quarter(f"{_BATCH_4} {_NARROW}", epochs=11.5),
    "batch 4, narrow V3+, weights": _quarter(f"{_BATCH_4} {_NARROW} {_WEIGHTS}", epochs=11.5),
}
