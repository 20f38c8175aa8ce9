"""NVIDIA's DeepLabV3+ with a SE-ResNeXt-50: class-uniform sampling and boundary relaxation (arXiv 1812.01593)."""

from trace_rows import Trace, differs, equal, no_effect, same

REFERENCE = {
    "(command).GPUs": 8,
    "dataset": "cityscapes",
    "cv": 0,
    "arch": "network.deepv3.DeepSRNX50V3PlusD_m1",
    "trunk": "resnet101",
    "snapshot": "a network trained on Mapillary",
    "restore_optimizer": False,
    "freeze_trunk": False,
    "class_uniform_pct": 0.5,
    "class_uniform_tile": 1024,
    "max_cu_epoch": 150,
    "coarse_boost_classes": (14, 15, 16, 3, 12, 17, 4),
    "maxSkip": 0,
    "scf": False,
    "hardnm": 0,
    "pre_size": None,
    "crop_size": 896,
    "scale_min": 0.5,
    "scale_max": 2.0,
    "color_aug": 0.25,
    "gblur": True,
    "bblur": False,
    "img_wt_loss": False,
    "batch_weighting": False,
    "wt_bound": 1.0,
    "jointwtborder": True,
    "strict_bdr_cls": (5, 6, 7, 11, 12, 17, 18),
    "rlx_off_epoch": 100,
    "sgd": True,
    "adam": False,
    "amsgrad": False,
    "lr": 0.001,
    "lr_schedule": "scl-poly",
    "poly_exp": 1.0,
    "repoly": 1.5,
    "rescale": 1.0,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "max_epoch": 175,
    "start_epoch": 0,
    "bs_mult": 2,
    "bs_mult_val": 1,
    "syncbn": True,
    "apex": True,
    "fp16": False,
    "local_rank": 0,
    "exp": "cityscapes_ft",
    "ckpt": "./logs/",
    "tb_path": "./logs/",
    "tb_tag": "",
    "dump_augmentation_images": False,
    "test_mode": False,
}

ROWS = (
    same(
        "dataset cv", {"data.train_split": "train", "eval.split": "val", "data.root": ""}, "The usual splits, fine annotations."
    ),
    differs(
        "arch",
        {
            "model.backbone": "resnext50_32x4d",
            "model.stem": "7x7",
            "model.shortcut": "1x1",
            "model.output_stride": 8,
            "model.multi_grid": (1.0,),
            "model.stage3_first_rate": 2,
            "model.atrous_rates": (6, 12, 18),
            "model.aspp_width": 256,
            "model.aspp_conv": "3x3",
            "model.fusion": "1x1",
            "model.low_level_width": 48,
            "model.decoder_width": 256,
            "model.decoder_conv": "3x3",
            "model.decoder_depth": 2,
            "model.dropout": 0.0,
            "model.decoder_dropout": 0.0,
            "model.align_corners": True,
            "model.aux_head": False,
        },
        "No squeeze-and-excitation. The stem's pooling has no additional row and column. The two 1x1 convolutions before the "
        "decoder are followed by BatchNorm and ReLU. The classifier has a bias.",
    ),
    no_effect("trunk", {}, "`arch` does not read it."),
    differs(
        "snapshot",
        {"model.pretrained": "hf:timm/resnext50_32x4d.tv_in1k"},
        "The backbone from ImageNet, instead of the full network from Mapillary.",
    ),
    same("restore_optimizer freeze_trunk", {"optim.frozen": ()}, "All parameters are trained, from a new optimizer state."),
    differs(
        "class_uniform_pct class_uniform_tile",
        {"data.class_balanced": 0.5},
        "Half of the crops are centred on a pixel of a class that is drawn evenly from the classes in the image. NVIDIA "
        "draws the class evenly from all classes, then a 1024x1024 tile that has it, and a crop that contains the class's "
        "centroid. Its rare classes are therefore seen more often.",
    ),
    differs("max_cu_epoch coarse_boost_classes", {}, "No coarsely labelled images. NVIDIA adds them until epoch 150."),
    same("maxSkip scf hardnm pre_size", {}, "Off: no predicted video frames, no first resize."),
    same("crop_size", {"data.crop_size": (896, 896)}, "A square."),
    differs(
        "scale_min scale_max",
        {"data.scale": (0.5, 2.0), "data.flip": True},
        "From the full range, and half are flipped. Images are resized bilinearly, with the mean colour outside. NVIDIA "
        "resizes them bicubically, with black outside.",
    ),
    differs(
        "color_aug gblur bblur",
        {"data.photometric": True},
        "mmsegmentation's distortions, each in half of the samples, without blur. NVIDIA multiplies brightness, contrast and "
        "saturation by 0.75 to 1.25 and turns the hue by up to 90 degrees, in all samples, and then blurs them.",
    ),
    same("batch_weighting img_wt_loss", {}, "Off."),
    differs(
        "wt_bound",
        {"loss.class_weights": ()},
        "No class weights. NVIDIA weights each class by 2 minus its share of the image's pixels, or 1 if it is not in the "
        "image.",
    ),
    differs(
        "jointwtborder strict_bdr_cls rlx_off_epoch",
        {"loss.terms": ("cross_entropy",), "loss.relax_border": 1, "loss.normalizer": "valid"},
        "For all classes and for the entire run. NVIDIA leaves out seven classes, and stops at epoch 100. Pixels that are "
        "ignored stay ignored, although a class is nearby.",
    ),
    same("sgd adam amsgrad", {"optim.name": "sgd"}, "torch.optim.SGD."),
    same(
        "lr weight_decay",
        {"optim.lr": 0.004, "optim.weight_decay": 2.5e-5},
        "NVIDIA's loss is the sum over the GPU's two images, and each is counted for the boundary weights of both. Its "
        "gradient is four times that of the mean. Four times the rate and a quarter of the decay give the same updates.",
    ),
    equal("momentum", "optim.momentum"),
    differs(
        "lr_schedule poly_exp repoly rescale",
        {"optim.schedule": "poly", "optim.power": 1.0, "optim.lr_end": 0.0, "optim.warmup_steps": 0},
        "One linear decay, by step. NVIDIA's falls linearly by epoch until epoch 100, restarts at the full rate, and ends "
        "with the power 1.5.",
    ),
    same("max_epoch start_epoch", {"train.epochs": 175}, "32,540 steps. NVIDIA's epochs have 186 steps, 32,550 in total."),
    same("(command).GPUs bs_mult", {"data.batch_size": 16}, "8 GPUs with 2 images each."),
    same("syncbn", {}, "BatchNorm over the batch of all devices."),
    differs(
        "fp16", {"model.dtype": "bfloat16"}, "The script computes in float32. The published score was trained with `--fp16`."
    ),
    same("", {"model.mean": (123.675, 116.28, 103.53), "model.std": (58.395, 57.12, 57.375)}, "ImageNet's, as in its code."),
    same("", {"eval.window": (0, 0), "eval.scales": (1.0,), "eval.flip": False}, "The full image, once, as in its validation."),
    no_effect(
        "bs_mult_val",
        {"eval.batch_size": 8, "train.eval_every_epochs": 25.0, "train.log_every": 50, "train.save_every": 1000},
        "NVIDIA validates after each epoch.",
    ),
    no_effect("apex local_rank exp ckpt tb_path tb_tag dump_augmentation_images test_mode", {}, "How the script is run."),
)

RX50 = Trace(
    "cityscapes_x50_nvidia",
    "NVIDIA/semantic-segmentation, branch sdcnet at 2f548ab3, scripts/train_cityscapes_SEResNeXt50.sh, with the defaults in "
    "train.py. The WideResNet-38 (81.4) and HRNet recipes of the repository have backbones that this package does not have.",
    "80.0 (README.md: DeepSRNX50V3PlusD_m1, no sdc-aug, fp16). Not expected here: the network and its first weights differ.",
    REFERENCE,
    ROWS,
    {1: ("35.83 GiB", "29 min 07 s", "1 h 12 min"), 8: ("4.87 GiB", "3 min 38 s", "9 min 05 s")},
)
