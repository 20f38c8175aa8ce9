"""CamVid (11 classes, 360x480): a DeepLabV3+ for training from scratch on a GPU, with a ResNet-50-D at output stride 8.

python train.py --config=configs/camvid_r50.py --config.data.root=CAMVID --workdir=runs/camvid_r50
python eval.py --config=configs/camvid_r50.py --config.data.root=CAMVID --checkpoint=runs/camvid_r50

Hardware and time: this recipe needs a GPU. It has not been run yet, so it is not known how long its 400 epochs (18,350 steps)
take.
Expected result: not measured. Under the protocol used in most papers, networks trained from scratch reach a test mIoU of
55.6 % (SegNet), 51.3 % (ENet) and 66.4 % (DABNet). To use this protocol, train with --config.data.train_split=train+val, and
evaluate once with --config.eval.split=test.

The class weights are the square roots of camvid_r18.py's. They and the narrower range of resize factors helped there. In that
study (benchmarks/camvid.md), photometric distortion did not improve training runs of a few minutes. The depth, decoder, output
stride, photometric distortion and run length are common choices.
"""

from deeplab_jax.config import Config, DataConfig, EvalConfig, LossConfig, ModelConfig, OptimConfig, TrainConfig
from deeplab_jax.labels import CAMVID


def get_config() -> Config:
    return Config(
        labels=CAMVID,
        model=ModelConfig(
            backbone="resnet50",
            stem="3x3",
            shortcut="avgpool+1x1",
            output_stride=8,
            decoder_width=256,
            aux_head=True,
            dtype="bfloat16",
        ),
        data=DataConfig(batch_size=8, crop_size=(360, 480), scale=(0.75, 1.5), photometric=True),
        loss=LossConfig(class_weights=(1.2, 1.0, 2.7, 1.0, 1.7, 1.3, 2.6, 2.2, 1.9, 2.7, 2.7)),
        optim=OptimConfig(lr=0.02, warmup_steps=200, weight_decay=5e-4),
        train=TrainConfig(epochs=400, eval_every=920, save_every=460),
        eval=EvalConfig(batch_size=8),
    )
