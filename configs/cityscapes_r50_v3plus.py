"""Cityscapes (19 classes): DeepLabV3+ with a ResNet-50 at output stride 8, following mmsegmentation's 80k recipe.

python train.py --config=configs/cityscapes_r50_v3plus.py --config.data.root=CITYSCAPES --workdir=runs/cityscapes_r50_v3plus
python eval.py --config=configs/cityscapes_r50_v3plus.py --config.data.root=CITYSCAPES --checkpoint=runs/cityscapes_r50_v3plus

Hardware and time: the reference used 4 GPUs. `deeplab-jax plan` estimates 1 h on one H100 and 8 min on 8 at 40 % of the peak
rate, without evaluations and waiting for data, and at least 14.1 and 2.2 GiB of memory per GPU.
Expected result: 80.09 % mIoU on val at a single scale, as reported for the reference,
mmsegmentation's deeplabv3plus_r50-d8_4xb2-80k_cityscapes-512x1024. This recipe has not been run to completion.

Differences from the reference (docs/reference/recipes.md compares every field with the reference's):
- Convolutions are computed in bfloat16.
- The classifiers' kernels start larger (Glorot). mmsegmentation's, with a standard deviation of 0.01, learn more slowly.
- The backbone's ImageNet weights come from timm. The architecture is the same as in the reference.
- Photometric distortion does not round to 8 bits after each operation.
- The 75 % limit for a single class in a crop is checked before the crop is resized.

The backbone weights are downloaded once from the Hugging Face hub. To pin a revision, add @REVISION to `pretrained`. On a
machine without internet access, use --config.model.pretrained=FILE with a previously downloaded file.
"""

from deeplab_jax.config import Config, DataConfig, EvalConfig, LossConfig, ModelConfig, OptimConfig, TrainConfig


def get_config() -> Config:
    return Config(
        model=ModelConfig(
            backbone="resnet50",
            stem="3x3",
            output_stride=8,
            aspp_width=512,
            aspp_conv="depthwise+bn+relu+1x1",
            fusion="3x3",
            decoder_width=512,
            decoder_conv="depthwise+bn+relu+1x1",
            decoder_dropout=0.1,
            dropout=0.0,
            aux_head=True,
            dtype="bfloat16",
            pretrained="hf:timm/resnet50c.gluon_in1k",
        ),
        data=DataConfig(batch_size=8, crop_size=(512, 1024), cat_max_ratio=0.75, photometric=True),
        loss=LossConfig(normalizer="all", aux_weight=0.4),
        optim=OptimConfig(lr=0.01, lr_end=1e-4, weight_decay=5e-4),
        train=TrainConfig(steps=80_000, log_every=50, eval_every=8000, save_every=2000),
        eval=EvalConfig(batch_size=8),
    )
