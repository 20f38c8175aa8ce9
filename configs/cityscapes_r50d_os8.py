"""Cityscapes, 19 classes: DeepLabV3-R50-D at output stride 8, PaddleSeg's 80k recipe.

python train.py --config=configs/cityscapes_r50d_os8.py --config.data.root=CITYSCAPES --workdir=runs/cityscapes_r50d_os8
python eval.py --config=configs/cityscapes_r50d_os8.py --config.data.root=CITYSCAPES --checkpoint=runs/cityscapes_r50d_os8

Reference: PaddleSeg deeplabv3_resnet50_os8_cityscapes_1024x512_80k, 79.90 mIoU (single scale, val), on 4 GPUs. This recipe has
not been run to the end here, so no time is given. Differences: the ImageNet backbone is timm's (PaddleSeg starts from weights
distilled with SSLD), with the normalisation that it was trained with; convolutions are in bfloat16; scales are drawn evenly,
not in steps of 0.25; photometric distortion is mmsegmentation's, where PaddleSeg has its own ranges (0.4 for each, hue 25
degrees); the third stage's first block has the rate of the stage before (PaddleSeg: 2), and shortcuts of stages without stride
pool at their rate (PaddleSeg: not). The backbone is fetched once from the Hugging Face hub (@REVISION after its name pins it);
offline, give its file with --config.model.pretrained=FILE.
"""

from deeplab_jax.config import Config, DataConfig, EvalConfig, ModelConfig, OptimConfig, TrainConfig


def get_config() -> Config:
    return Config(
        model=ModelConfig(
            backbone="resnet50",
            stem="3x3",
            shortcut="avgpool+1x1",
            output_stride=8,
            multi_grid=(1.0, 2.0, 4.0),
            dropout=0.1,
            dtype="bfloat16",
            pretrained="hf:timm/resnet50d.ra2_in1k",
        ),
        data=DataConfig(batch_size=8, crop_size=(512, 1024), photometric=True),
        optim=OptimConfig(lr=0.01, weight_decay=4e-5),
        train=TrainConfig(steps=80_000, log_every=50, eval_every=8000, save_every=2000),
        eval=EvalConfig(batch_size=8),
    )
