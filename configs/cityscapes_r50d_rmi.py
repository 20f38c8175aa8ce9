"""Cityscapes (19 classes): DeepLabV3+ with a ResNet-50-D and the RMI loss, following PaddleSeg's recipe.

python train.py --config=configs/cityscapes_r50d_rmi.py --config.data.root=CITYSCAPES --workdir=runs/cityscapes_r50d_rmi
python eval.py --config=configs/cityscapes_r50d_rmi.py --config.data.root=CITYSCAPES --checkpoint=runs/cityscapes_r50d_rmi

Hardware and time: the reference used 4 GPUs. `deeplab-jax plan` estimates 37 min on one H100 and 5 min on 8 at 40 % of the
peak rate, without evaluations and waiting for data, and at least 11.9 and 1.8 GiB of memory per GPU.
Expected result: 81.18 % mIoU on val at a single scale, as reported for the reference,
PaddleSeg's deeplabv3p_resnet50_os8_cityscapes_1024x512_80k_rmiloss. This recipe has not been run to completion.

Differences from the reference (docs/reference/recipes.md compares every field with the reference's):
- The backbone's ImageNet weights come from timm. PaddleSeg starts from weights distilled with SSLD, which
  --config.model.pretrained=FILE.pdparams also reads.
- Convolutions are computed in bfloat16.
- Resize factors are drawn from a continuous range. PaddleSeg uses steps of 0.25.
- Photometric distortion uses mmsegmentation's ranges. PaddleSeg uses 0.4 for each factor and 25 degrees for the hue.

As in the reference, images are scaled to -1 to 1, although the ImageNet weights were trained with another mean and standard
deviation. The start of a training says so.

The backbone weights are downloaded once from the Hugging Face hub. To pin a revision, add @REVISION to `pretrained`. On a
machine without internet access, use --config.model.pretrained=FILE with a previously downloaded file.
"""

from deeplab_jax.config import Config, DataConfig, EvalConfig, LossConfig, ModelConfig, OptimConfig, TrainConfig


def get_config() -> Config:
    return Config(
        model=ModelConfig(
            backbone="resnet50",
            stem="3x3",
            shortcut="avgpool+1x1",
            pool_dilated_shortcuts=False,
            output_stride=8,
            multi_grid=(1.0, 2.0, 4.0),
            stage3_first_rate=2,
            aspp_conv="depthwise+bn+1x1",
            conv_bias=True,
            decoder_width=256,
            decoder_conv="depthwise+bn+1x1",
            dropout=0.1,
            dtype="bfloat16",
            mean=(127.5, 127.5, 127.5),
            std=(127.5, 127.5, 127.5),
            pretrained="hf:timm/resnet50d.ra2_in1k",
        ),
        data=DataConfig(batch_size=8, crop_size=(512, 1024), photometric=True),
        loss=LossConfig(terms=("cross_entropy", "rmi"), weights=(0.5, 0.5)),
        optim=OptimConfig(lr=0.01, weight_decay=4e-5),
        train=TrainConfig(steps=80_000, log_every=50, eval_every=8000, save_every=2000),
        eval=EvalConfig(batch_size=8),
    )
