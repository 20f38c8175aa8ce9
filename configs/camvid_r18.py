"""CamVid (11 classes, 360x480): a small DeepLabV3+ for training from scratch on a CPU, with a half-width ResNet-18.

python train.py --config=configs/camvid_r18.py --config.data.root=CAMVID --workdir=runs/camvid_r18
python eval.py --config=configs/camvid_r18.py --config.data.root=CAMVID --checkpoint=runs/camvid_r18

Hardware and time: a step takes about 0.45 s on one CPU core, which makes 22 minutes of training steps.
Result: a val mIoU of 56.7 % and a pixel accuracy of 86.2 %, and 66.8 % and 92.3 % with --config.train.epochs=128, with seed 0,
the only one, measured on 2026-11-30. With SGD and the cross-entropy alone, the 32 epochs reached a val mIoU of 52.2 %.
benchmarks/camvid.md has the comparison.
"""

from deeplab_jax.config import Config, DataConfig, EvalConfig, LossConfig, ModelConfig, OptimConfig, TrainConfig
from deeplab_jax.labels import CAMVID


def get_config() -> Config:
    return Config(
        labels=CAMVID,
        model=ModelConfig(backbone="resnet18", width=32, output_stride=32, aspp_width=64, decoder_width=32),
        data=DataConfig(batch_size=4, crop_size=(240, 320), scale=(0.75, 1.5)),
        # Each class weight is about sqrt(number of "road" pixels / number of pixels in the class), capped at 7.5.
        loss=LossConfig(
            terms=("cross_entropy", "dice"),
            weights=(1.0, 1.0),
            class_weights=(1.5, 1.0, 7.5, 1.0, 3.0, 1.6, 7.0, 5.0, 3.5, 7.5, 7.5),
        ),
        optim=OptimConfig(name="adamw", lr=2e-3, weight_decay=0.05, warmup_steps=20),
        train=TrainConfig(epochs=32, log_every=10, eval_every=734, save_every=50),
        eval=EvalConfig(batch_size=4),
    )
