"""Cityscapes (19 classes): DeepLabV3+ with a ResNeXt-50 and crops around rare classes, after NVIDIA's class-uniform recipe.

python train.py --config=configs/cityscapes_x50_nvidia.py --config.data.root=CITYSCAPES --workdir=runs/cityscapes_x50_nvidia
python eval.py --config=configs/cityscapes_x50_nvidia.py --config.data.root=CITYSCAPES --checkpoint=runs/cityscapes_x50_nvidia

Hardware and time: the reference took 9 hours on 8 V100 GPUs. `deeplab-jax plan` estimates 1 h 12 min on one H100 and 9 min on
8 at 40 % of the peak rate, without evaluations and waiting for data, and at least 35.8 and 4.9 GiB of memory per GPU.
Expected result: unknown. The reference, DeepSRNX50V3PlusD_m1 in the branch sdcnet of NVIDIA/semantic-segmentation (arXiv
1812.01593), has 80.0 % mIoU, but also squeeze-and-excitation and weights trained on Mapillary to start from.

Differences from the reference (docs/reference/recipes.md compares every field with the reference's):
- The backbone has no squeeze-and-excitation. Its ImageNet weights come from torchvision. NVIDIA starts from Mapillary.
- Half of the crops are centred on a pixel of a class drawn evenly from the classes in the image. NVIDIA draws the class first
  and then any image that has it, so images with rare classes are used more often.
- Coarsely labelled images are not used. NVIDIA adds them to seven rare classes until epoch 150.
- Every class is relaxed at boundaries, in the entire run. NVIDIA leaves out seven classes, and stops at epoch 100.
- The learning rate falls once. NVIDIA restarts it at epoch 100.
- The loss is a mean over the pixels of the batch without class weights. NVIDIA's code adds up the losses of the two images on
  a GPU and counts each twice, so its gradient is about four times as large: `lr` is 4 times NVIDIA's, and `weight_decay` a
  quarter.
- Photometric distortion uses mmsegmentation's ranges, without blur. NVIDIA blurs, and distorts every image by up to 25 %.
- The convolutions that reduce the ASPP and the low-level features have a BatchNorm and a ReLU, and the classifier has a bias.
- Convolutions are computed in bfloat16. NVIDIA used float16.

The backbone weights are downloaded once from the Hugging Face hub. To pin a revision, add @REVISION to `pretrained`. On a
machine without internet access, use --config.model.pretrained=FILE with a previously downloaded file.
"""

from deeplab_jax.config import Config, DataConfig, EvalConfig, LossConfig, ModelConfig, OptimConfig, TrainConfig


def get_config() -> Config:
    return Config(
        model=ModelConfig(
            backbone="resnext50_32x4d",
            output_stride=8,
            multi_grid=(1.0,),
            stage3_first_rate=2,
            decoder_width=256,
            dropout=0.0,
            align_corners=True,
            dtype="bfloat16",
            pretrained="hf:timm/resnext50_32x4d.tv_in1k",
        ),
        data=DataConfig(batch_size=16, crop_size=(896, 896), class_balanced=0.5, photometric=True),
        loss=LossConfig(relax_border=1),
        optim=OptimConfig(lr=0.004, power=1.0, weight_decay=2.5e-5),
        train=TrainConfig(epochs=175, log_every=50, eval_every_epochs=25, save_every=1000),
        eval=EvalConfig(batch_size=8),
    )
