"""Cityscapes, 19 classes: DeepLabV3-R101 at output stride 8, mmsegmentation's 80k recipe.

python train.py --config=configs/cityscapes_r101_os8.py --config.data.root=CITYSCAPES --workdir=runs/cityscapes_r101_os8
python eval.py --config=configs/cityscapes_r101_os8.py --config.data.root=CITYSCAPES --checkpoint=runs/cityscapes_r101_os8

Reference: mmsegmentation deeplabv3_r101-d8_4xb2-80k_cityscapes-512x1024, 80.20 mIoU (single scale, val), from an ImageNet
backbone on 4 GPUs. This recipe has not been run to the end here, so no time is given. Differences: convolutions are in
bfloat16, the ImageNet backbone is timm's of the same kind, photometric distortion is not rounded to 8 bits after each
operation, and the crop's 75 % are counted before the crop is resized. The backbone is fetched once from the Hugging Face hub
(@REVISION after its name pins it); offline, give its file with --config.model.pretrained=FILE.
"""

from deeplab_jax.config import Config, DataConfig, EvalConfig, LossConfig, ModelConfig, OptimConfig, TrainConfig


def get_config() -> Config:
    return Config(
        model=ModelConfig(
            backbone="resnet101",
            stem="3x3",
            output_stride=8,
            aspp_width=512,
            fusion="3x3",
            aux_head=True,
            dtype="bfloat16",
            pretrained="hf:timm/resnet101c.gluon_in1k",
        ),
        data=DataConfig(batch_size=8, crop_size=(512, 1024), cat_max_ratio=0.75, photometric=True),
        loss=LossConfig(normalizer="all", aux_weight=0.4),
        optim=OptimConfig(lr=0.01, lr_end=1e-4, weight_decay=5e-4),
        train=TrainConfig(steps=80_000, log_every=50, eval_every=8000, save_every=2000),
        eval=EvalConfig(batch_size=8),
    )
