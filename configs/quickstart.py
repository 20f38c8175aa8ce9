"""The whole path on a laptop: a narrow ResNet-18 on street scenes that the project draws itself.

make quickstart
"""

from deeplab_jax.config import Config, DataConfig, EvalConfig, ModelConfig, OptimConfig, TrainConfig


def get_config() -> Config:
    return Config(
        model=ModelConfig(backbone="resnet18", width=32, output_stride=8, aspp_width=128),
        data=DataConfig(root="data/synthetic", batch_size=8, crop_size=(128, 256), scale=(0.5, 1.0)),
        optim=OptimConfig(lr=0.05, warmup_steps=20),
        train=TrainConfig(steps=300, log_every=20, eval_every=100, save_every=100),
        eval=EvalConfig(batch_size=4),
    )
