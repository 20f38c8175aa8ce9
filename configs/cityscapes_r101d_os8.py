"""Cityscapes (19 classes): DeepLabV3 with a ResNet-101-D at output stride 8, following PaddleSeg's 80k recipe.

python train.py --config=configs/cityscapes_r101d_os8.py --config.data.root=CITYSCAPES --workdir=runs/cityscapes_r101d_os8
python eval.py --config=configs/cityscapes_r101d_os8.py --config.data.root=CITYSCAPES --checkpoint=runs/cityscapes_r101d_os8

Hardware and time: the reference used 4 GPUs. This recipe has not been run to completion, so its run time is unknown.
Expected result: 80.85 % mIoU on val at a single scale, as reported for the reference,
PaddleSeg's deeplabv3_resnet101_os8_cityscapes_1024x512_80k.

Differences from the reference:
- The backbone's ImageNet weights and the image normalisation come from timm. PaddleSeg starts from weights distilled with SSLD.
- Convolutions are computed in bfloat16.
- Resize factors are drawn from a continuous range. PaddleSeg uses steps of 0.25.
- Photometric distortion uses mmsegmentation's ranges. PaddleSeg uses 0.4 for each factor and 25 degrees for the hue.

The backbone weights are downloaded once from the Hugging Face hub. To pin a revision, add @REVISION to `pretrained`. On a
machine without internet access, use --config.model.pretrained=FILE with a previously downloaded file.
"""

from deeplab_jax.config import Config, DataConfig, EvalConfig, ModelConfig, OptimConfig, TrainConfig


def get_config() -> Config:
    return Config(
        model=ModelConfig(
            backbone="resnet101",
            stem="3x3",
            shortcut="avgpool+1x1",
            pool_dilated_shortcuts=False,
            output_stride=8,
            multi_grid=(1.0, 2.0, 4.0),
            stage3_first_rate=2,
            dropout=0.1,
            dtype="bfloat16",
            pretrained="hf:timm/resnet101d.ra2_in1k",
        ),
        data=DataConfig(batch_size=8, crop_size=(512, 1024), photometric=True),
        optim=OptimConfig(lr=0.01, weight_decay=4e-5),
        train=TrainConfig(steps=80_000, log_every=50, eval_every=8000, save_every=2000),
        eval=EvalConfig(batch_size=8),
    )
