"""CamVid (11 classes, 360x480): a small DeepLabV3+ for training from scratch on a CPU, with a half-width ResNet-18.

python train.py --config=configs/camvid_r18.py --config.data.root=CAMVID --workdir=runs/camvid_r18
python eval.py --config=configs/camvid_r18.py --config.data.root=CAMVID --checkpoint=runs/camvid_r18

Hardware and time: 2 CPU cores, 22 min 52 s (measured with seed 2 on an otherwise idle machine).
Result: a val mIoU of 52.7, 51.6 and 52.4 % and a pixel accuracy of 84.2, 82.3 and 84.8 % for seeds 0, 1 and 2, measured on
2026-11-23. The plain baseline recipe reaches a val mIoU of 42.3, 39.6 and 39.7 % in 26 min 1 s. See benchmarks/camvid.md for
the comparison.
"""

from deeplab_jax.config import Config, DataConfig, EvalConfig, LossConfig, ModelConfig, OptimConfig, TrainConfig
from deeplab_jax.labels import CAMVID


def get_config() -> Config:
    return Config(
        labels=CAMVID,
        model=ModelConfig(backbone="resnet18", width=32, output_stride=32, aspp_width=64, decoder_width=32),
        data=DataConfig(batch_size=4, crop_size=(240, 320), scale=(0.75, 1.5)),
        # Each weight is about sqrt(number of "road" pixels / number of pixels in the class), capped at 7.5.
        loss=LossConfig(class_weights=(1.5, 1.0, 7.5, 1.0, 3.0, 1.6, 7.0, 5.0, 3.5, 7.5, 7.5)),
        optim=OptimConfig(lr=0.02, weight_decay=1e-4),
        train=TrainConfig(epochs=32, log_every=10, eval_every=734, save_every=50),
        eval=EvalConfig(batch_size=4),
    )
