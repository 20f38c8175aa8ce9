"""Your own data: ResNet-18 at output stride 16, a first training whose classes are those of a label-set file.

deeplab-jax data labels ROOT                  # finds the values in your masks, writes ROOT/labels.json: name the classes there
deeplab-jax data check ROOT --out=ROOT/check  # opens every file, shows samples
python train.py --config=configs/custom.py:ROOT/labels.json --config.data.root=ROOT --workdir=runs/mine
python eval.py --config=configs/custom.py:ROOT/labels.json --config.data.root=ROOT --checkpoint=runs/mine --output=runs/mine/val

Also configs/custom.py:camvid, :cityscapes, :voc and :ade20k, for data with those classes.

CPU cores train it in under an hour. It counts steps: 20 epochs of 50 images would be 125 updates. Crops are 320x320, whichever
way your images lie; on a GPU, --config.data.crop_size at about two thirds of their height and width shows more of the scene.
Where images are few, start from published weights (--config.model.pretrained, docs/weights.md), which need the width that it
has; from scratch, the narrower network and the class weights of camvid_r18.py learn more in the same time (`data check` prints
weights for your classes). What it reaches depends on the data: benchmarks/camvid.md has what it does on CamVid, as "plain".
"""

from deeplab_jax.config import Config, DataConfig, EvalConfig, ModelConfig, OptimConfig, TrainConfig


def get_config(labels: str = "") -> Config:
    from deeplab_jax.errors import ConfigError
    from deeplab_jax.labels.files import load_labels

    if not labels:
        raise ConfigError(
            "`--config` (='configs/custom.py') names no label-set file: give --config=configs/custom.py:ROOT/labels.json, "
            "which `deeplab-jax data labels ROOT` writes"
        )
    return Config(
        labels=load_labels(labels),
        model=ModelConfig(backbone="resnet18", output_stride=16),
        data=DataConfig(batch_size=8, crop_size=(320, 320)),
        optim=OptimConfig(lr=0.02, weight_decay=1e-4),
        train=TrainConfig(steps=1000, log_every=10, eval_every=250, save_every=50),
        eval=EvalConfig(batch_size=4),
    )
