"""CamVid, 11 classes at 360x480: a DeepLabV3+ with a ResNet-18 of half the width, from scratch, the fast one for CPU cores.

python train.py --config=configs/camvid_r18.py --config.data.root=CAMVID --workdir=runs/camvid_r18
python eval.py --config=configs/camvid_r18.py --config.data.root=CAMVID --checkpoint=runs/camvid_r18

Measured on 2026-11-23, 2 CPU cores, seeds 0, 1, 2: val mIoU 52.7, 51.6, 52.4, pixel accuracy 84.2, 82.3, 84.8, in 22 min 52 s
(seed 2, nothing beside it). The plain recipe, which this one was chosen against, gives 42.3, 39.6, 39.7 in 26 min 1 s;
benchmarks/camvid.md has the study.
"""

from deeplab_jax.config import Config, DataConfig, EvalConfig, LossConfig, ModelConfig, OptimConfig, TrainConfig
from deeplab_jax.labels import CAMVID


def get_config() -> Config:
    return Config(
        labels=CAMVID,
        model=ModelConfig(backbone="resnet18", width=32, output_stride=32, aspp_width=64, decoder_width=32),
        data=DataConfig(batch_size=4, crop_size=(240, 320), scale=(0.75, 1.5)),
        # Near the root of (the road's pixels / the class's), at most 7.5.
        loss=LossConfig(class_weights=(1.5, 1.0, 7.5, 1.0, 3.0, 1.6, 7.0, 5.0, 3.5, 7.5, 7.5)),
        optim=OptimConfig(lr=0.02, weight_decay=1e-4),
        train=TrainConfig(epochs=32, log_every=10, eval_every=734, save_every=50),
        eval=EvalConfig(batch_size=4),
    )
