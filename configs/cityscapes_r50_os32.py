"""Cityscapes (19 classes): DeepLabV3+ with a ResNet-50 at output stride 32, after deeplab2's recipe for full images.

python train.py --config=configs/cityscapes_r50_os32.py --config.data.root=CITYSCAPES --workdir=runs/cityscapes_r50_os32
python eval.py --config=configs/cityscapes_r50_os32.py --config.data.root=CITYSCAPES --checkpoint=runs/cityscapes_r50_os32

Hardware and time: `deeplab-jax plan` estimates 28 min on one H100 and 3 min on 8 at 40 % of the peak rate, without evaluations
and waiting for data, and at least 21.5 and 3.2 GiB of memory per GPU.
Expected result: unknown. No score is published for the reference, deeplab2's panoptic_deeplab/resnet50_os32_semseg, which is
Panoptic-DeepLab without its instance branch. With that branch and half of the learning rate, deeplab2 reports 76.0 % mIoU.

Differences from the reference (docs/reference/recipes.md compares every field with the reference's):
- The decoder is DeepLabV3+'s, with 3x3 convolutions and features at stride 4. Panoptic-DeepLab has 5x5 convolutions, and reads
  features at stride 8 as well.
- BatchNorm has an epsilon of 1e-5 and updates its statistics with a factor of 0.1. deeplab2 uses 1e-3 and 0.01.
- The hardest fifth of the pixels is selected from the batch. deeplab2 selects a fifth of each image.
- Resize factors are drawn from a continuous range. deeplab2 uses steps of 0.1.
- deeplab2 pads val images to 1025x2049. Here, they are evaluated at 1024x2048.
- The backbone's ImageNet weights come from torchvision, with its mean and standard deviation.
- Convolutions are computed in bfloat16.

The backbone weights are downloaded once from the Hugging Face hub. To pin a revision, add @REVISION to `pretrained`. On a
machine without internet access, use --config.model.pretrained=FILE with a previously downloaded file.
"""

from deeplab_jax.config import Config, DataConfig, EvalConfig, LossConfig, ModelConfig, OptimConfig, TrainConfig


def get_config() -> Config:
    return Config(
        model=ModelConfig(
            backbone="resnet50",
            output_stride=32,
            decoder_width=256,
            low_level_width=32,
            decoder_conv="depthwise+bn+relu+1x1",
            dropout=0.1,
            align_corners=True,
            dtype="bfloat16",
            pretrained="hf:timm/resnet50.tv_in1k",
        ),
        data=DataConfig(batch_size=8, crop_size=(1025, 2049)),
        # A threshold near 0 keeps only the hardest pixels: a fifth of 1025 x 2049.
        loss=LossConfig(ohem_threshold=1e-6, ohem_min_kept=420_045),
        optim=OptimConfig(name="adam", options=(("eps", 1e-7),), lr=5e-4, weight_decay=0.0),
        train=TrainConfig(steps=60_000, log_every=100, eval_every=5000, save_every=1000),
        eval=EvalConfig(batch_size=8),
    )
