"""CamVid, 11 classes at 360x480: ResNet-18 from scratch at output stride 16, a first real training on a CPU.

python train.py --config=configs/camvid_r18.py --config.data.root=CAMVID --workdir=runs/camvid_r18
python eval.py --config=configs/camvid_r18.py --config.data.root=CAMVID --checkpoint=runs/camvid_r18

Measured on 2026-11-22, 2 CPU cores (AVX2), seed 0: val mIoU 40.7, pixel accuracy 85.4; 918 steps,
2.6 to 3.2 s each while the machine did nothing else, so 40 to 50 minutes (this run shared the machine and took 92).
The same recipe in PyTorch (segmentation_models.pytorch) gives 42.2 and 86.2 in 50 minutes there, also from one seed.
"""

from deeplab_jax.config import Config, DataConfig, EvalConfig, ModelConfig, OptimConfig, TrainConfig
from deeplab_jax.labels import CAMVID


def get_config() -> Config:
    return Config(
        labels=CAMVID,
        model=ModelConfig(backbone="resnet18", output_stride=16),
        data=DataConfig(batch_size=8, crop_size=(240, 320)),
        optim=OptimConfig(lr=0.02, weight_decay=1e-4),
        train=TrainConfig(epochs=20, log_every=10, eval_every=230, save_every=50),
        eval=EvalConfig(batch_size=4),
    )
