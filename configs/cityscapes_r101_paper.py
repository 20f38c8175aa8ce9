"""Cityscapes, 19 classes: DeepLabV3-R101 as in the paper (1706.05587): train at output stride 16, evaluate at 8.

python train.py --config=configs/cityscapes_r101_paper.py --config.data.root=CITYSCAPES --workdir=runs/cityscapes_r101_paper
python eval.py --config=configs/cityscapes_r101_paper.py --config.data.root=CITYSCAPES --checkpoint=runs/cityscapes_r101_paper

Reference: 77.23 mIoU at output stride 16 and 77.82 at 8 (appendix A, single scale, val), from an ImageNet backbone, 90k
steps. This recipe has not been run to the end here, so no time is given. Differences: a stage's stride lies in its first
block (the paper's code puts it in the last block of the stage before); BatchNorm's statistics move by 0.1 a step (paper:
0.0003); the ImageNet backbone is torchvision's; convolutions are in bfloat16. The backbone is fetched once from the Hugging
Face hub (@REVISION after its name pins it); offline, give its file with --config.model.pretrained=FILE.
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
