"""Rows of the CamVid study: at a quarter of the time of configs/camvid_r18.py, and at that time. camvid.md has what they gave.

python benchmarks/sweep.py benchmarks/camvid_study.py --root CAMVID --out runs/camvid_study --table camvid_table.md
"""

RECIPE = "configs/camvid_r18.py"

_WEIGHTS = "--config.loss.class_weights='(1.5,1.0,7.5,1.0,3.0,1.6,7.0,5.0,3.5,7.5,7.5)'"
_BATCH_4 = "--config.data.batch_size=4"
_NARROW = "--config.model.width=32 --config.model.aspp_width=64 --config.model.decoder_width=32"


def _epochs(epochs: float, *flags: str) -> str:
    return " ".join((f"--config.train.epochs={epochs:g} --config.train.eval_every=0", *flags))


# An image takes the narrow network 0.56 times as long. The rows of 11.5 epochs were chosen before that was measured on a quiet
# machine: they take 1.3 times the quarter.
ROWS = {
    "recipe": _epochs(5),
    "batch 4": _epochs(5, _BATCH_4),
    "batch 4, weights": _epochs(5, _BATCH_4, _WEIGHTS),
    "batch 4, narrow V3+": _epochs(11.5, _BATCH_4, _NARROW),
    "batch 4, narrow V3+, weights": _epochs(11.5, _BATCH_4, _NARROW, _WEIGHTS),
    "batch 4, narrow V3+, weights, scale 0.75 to 1.5": _epochs(
        11.5, _BATCH_4, _NARROW, _WEIGHTS, "--config.data.scale='(0.75,1.5)'"
    ),
    "batch 4, narrow V3+, balanced windows": _epochs(11.5, _BATCH_4, _NARROW, "--config.data.class_balanced=0.5"),
    "full recipe": _epochs(20),
    "full narrow V3+, weights": _epochs(35, _BATCH_4, _NARROW, _WEIGHTS),
}
