"""Your own data: a first training with a ResNet-18 at output stride 16. The classes come from a label-set file.

deeplab-jax data labels ROOT                  # writes the values in your masks to ROOT/labels.json, where you name the classes
deeplab-jax data check ROOT --out=ROOT/check  # checks every file and shows samples
python train.py --config=configs/custom.py:ROOT/labels.json --config.data.root=ROOT --workdir=runs/mine
python eval.py --config=configs/custom.py:ROOT/labels.json --config.data.root=ROOT --checkpoint=runs/mine --output=runs/mine/val

If your data has the classes of a built-in label set, use configs/custom.py:cityscapes, :camvid, :voc or :ade20k instead.

Hardware and time: less than an hour on a CPU. The length is set in steps, because epochs of a small data set are very short: 20
epochs of 50 images would only be 125 updates.
Expected result: it depends on the data. benchmarks/camvid.md shows the result on CamVid, in the rows called "plain".

- Crops are 320x320, which suits both landscape and portrait images. On a GPU, set --config.data.crop_size to about two thirds
  of the height and width of your images, to show more of the scene.
- If you have few images, start from published weights, which fit the width of this network. Set --config.model.pretrained, as
  described in docs/how-to/published-weights.md.
- Without published weights, the narrower network and the class weights of camvid_r18.py learn more in the same time.
  `deeplab-jax data check` prints class weights for your data.
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
