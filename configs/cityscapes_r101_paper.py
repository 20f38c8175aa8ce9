"""Cityscapes (19 classes): DeepLabV3 with a ResNet-101 as in the paper, trained at output stride 16 and evaluated at 8.

python train.py --config=configs/cityscapes_r101_paper.py --config.data.root=CITYSCAPES --workdir=runs/cityscapes_r101_paper
python eval.py --config=configs/cityscapes_r101_paper.py --config.data.root=CITYSCAPES --checkpoint=runs/cityscapes_r101_paper

Hardware and time: this recipe has not been run to completion, so it is not known how long its 90,000 steps take.
Expected result: 77.23 % mIoU at output stride 16 and 77.82 % at output stride 8, on val at a single scale. These are the
paper's results (arXiv 1706.05587, appendix A). The paper also starts from an ImageNet backbone.

Differences from the paper:
- Each stage applies its stride in its first block. The paper's code applies it in the previous stage's last block.
- BatchNorm's running statistics are updated with a factor of 0.1 per step. The paper uses 0.0003.
- The backbone's ImageNet weights come from torchvision.
- Convolutions are computed in bfloat16.

The backbone weights are downloaded once from the Hugging Face hub. To pin a revision, add @REVISION to `pretrained`. On a
machine without internet access, use --config.model.pretrained=FILE with a previously downloaded file.
"""

from deeplab_jax.config import Config, DataConfig, EvalConfig, ModelConfig, OptimConfig, TrainConfig


def get_config() -> Config:
    return Config(
        model=ModelConfig(
            backbone="resnet101",
            output_stride=16,
            multi_grid=(1.0, 2.0, 4.0),
            dropout=0.0,
            dtype="bfloat16",
            pretrained="hf:timm/resnet101.tv_in1k",
        ),
        data=DataConfig(batch_size=16, crop_size=(769, 769)),
        optim=OptimConfig(lr=0.007, power=0.9, weight_decay=1e-4),
        train=TrainConfig(steps=90_000, log_every=50, eval_every=10_000, save_every=2000),
        eval=EvalConfig(batch_size=8, output_stride=8),
    )
