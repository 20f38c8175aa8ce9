"""A first complete run on a laptop: a narrow ResNet-18 on synthetic street scenes that the project draws itself.

make quickstart

Hardware and time: 2 CPU cores with AVX2, 5 to 7 minutes in total, at 0.35 to 0.6 s per step for 550 steps.
Result: a val mIoU of 59.5 % and a pixel accuracy of 88.0 %, measured on 2026-11-30.
"""

from deeplab_jax.config import Config, DataConfig, EvalConfig, ModelConfig, OptimConfig, TrainConfig


def get_config() -> Config:
    return Config(
        model=ModelConfig(backbone="resnet18", width=16, output_stride=8, aspp_width=64, dropout=0.0),
        # Crops show full scenes, because a run this short mostly learns where in the image each class appears.
        data=DataConfig(root="data/synthetic", batch_size=4, crop_size=(192, 384), scale=(1.0, 1.2)),
        optim=OptimConfig(lr=0.1, warmup_steps=20),
        train=TrainConfig(steps=550, log_every=25, eval_every=275, save_every=275),
        eval=EvalConfig(batch_size=4),
    )
