"""A first training run on your own data, with a ResNet-18 at output stride 16. The classes come from a label-set file.

deeplab-jax data labels ROOT                  # writes your mask values to ROOT/labels.json, where you name the classes
deeplab-jax data check ROOT --out=ROOT/check  # checks every file and draws samples
python train.py --config=configs/custom.py:ROOT/labels.json --config.data.root=ROOT --workdir=runs/mine
python eval.py --config=configs/custom.py:ROOT/labels.json --config.data.root=ROOT --checkpoint=runs/mine --output=runs/mine/val

If your data has the classes of a built-in label set, use configs/custom.py:cityscapes, :camvid, :voc or :ade20k instead.

Hardware and time: less than an hour on a CPU. The run length is set in steps because a small data set has very short epochs: 20
epochs of 50 images would be only 125 updates.
Expected result: this depends on the data. For CamVid, see the "plain" rows in benchmarks/camvid.md.

- Crops are 320x320, which suits both landscape and portrait images. On a GPU, set --config.data.crop_size to about two thirds
  of your images' height and width, to show more of the scene.
- If you have few images, start from published weights, which fit this network's width. Set --config.model.pretrained as
  described in docs/how-to/published-weights.md.
- Without published weights, camvid_r18.py's narrower network, optimizer, losses and class weights give better results in the
  same time. `deeplab-jax data check` prints class weights for your data.
"""

from deeplab_jax.config import Config, DataConfig, EvalConfig, ModelConfig, OptimConfig, TrainConfig


def get_config(labels: str = "") -> Config:
    from deeplab_jax.errors import ConfigError
    from deeplab_jax.labels.files import load_labels

    if not labels:
        raise ConfigError(
            "`--config` (='configs/custom.py') does not name a label-set file. Write one with `deeplab-jax data labels ROOT`, "
            "and use --config=configs/custom.py:ROOT/labels.json."
        )
    return Config(
        labels=load_labels(labels),
        model=ModelConfig(backbone="resnet18", output_stride=16),
        data=DataConfig(batch_size=8, crop_size=(320, 320)),
        optim=OptimConfig(lr=0.02, weight_decay=1e-4),
        train=TrainConfig(steps=1000, log_every=10, eval_every=250, save_every=50),
        eval=EvalConfig(batch_size=4),
    )
