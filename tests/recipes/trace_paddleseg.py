"""PaddleSeg's DeepLabV3+ configs for Cityscapes with the highest scores."""

from typing import Any

from trace_rows import Row, Trace, differs, equal, no_effect, same

REFERENCE: dict[str, Any] = {
    "(docs/config/pre_config.md).GPUs": 4,
    "batch_size": 2,
    "iters": 80_000,
    "train_dataset.type": "Cityscapes",
    "train_dataset.dataset_root": "data/cityscapes",
    "train_dataset.mode": "train",
    "train_dataset.transforms.ResizeStepScaling.min_scale_factor": 0.5,
    "train_dataset.transforms.ResizeStepScaling.max_scale_factor": 2.0,
    "train_dataset.transforms.ResizeStepScaling.scale_step_size": 0.25,
    "train_dataset.transforms.RandomPaddingCrop.crop_size": (1024, 512),
    "train_dataset.transforms.RandomHorizontalFlip": "its defaults",
    "train_dataset.transforms.RandomDistort.brightness_range": 0.4,
    "train_dataset.transforms.RandomDistort.contrast_range": 0.4,
    "train_dataset.transforms.RandomDistort.saturation_range": 0.4,
    "train_dataset.transforms.Normalize": "its defaults",
    "val_dataset.type": "Cityscapes",
    "val_dataset.dataset_root": "data/cityscapes",
    "val_dataset.mode": "val",
    "val_dataset.transforms.Normalize": "its defaults",
    "optimizer.type": "SGD",
    "optimizer.momentum": 0.9,
    "optimizer.weight_decay": 4e-5,
    "lr_scheduler.type": "PolynomialDecay",
    "lr_scheduler.learning_rate": 0.01,
    "lr_scheduler.end_lr": 0,
    "lr_scheduler.power": 0.9,
    "loss.types": "CrossEntropyLoss",
    "loss.coef": (1,),
    "model.type": "DeepLabV3P",
    "model.backbone.type": "ResNet50_vd",
    "model.backbone.output_stride": 8,
    "model.backbone.multi_grid": (1, 2, 4),
    "model.backbone.pretrained": "resnet50_vd_ssld_v2.tar.gz",
    "model.num_classes": 19,
    "model.backbone_indices": (0, 3),
    "model.aspp_ratios": (1, 12, 24, 36),
    "model.aspp_out_channels": 256,
    "model.align_corners": False,
    "model.pretrained": None,
}
RMI_CHANGES = {"loss.types": "MixedLoss: CrossEntropyLoss, RMILoss", "loss.types.MixedLoss.coef": (0.5, 0.5)}
R101_CHANGES = {
    "model.backbone.type": "ResNet101_vd",
    "model.backbone.pretrained": "resnet101_vd_ssld.tar.gz",
    "model.align_corners": True,
    "train_dataset.transforms.RandomPaddingCrop.crop_size": (769, 769),
    "val_dataset.transforms.Padding.target_size": (2049, 1025),
}


def list_rows(depth: int) -> tuple[Row, ...]:
    """Return the rows that both configs share."""
    return (*_list_network_rows(depth), *_list_training_rows())


def _list_network_rows(depth: int) -> tuple[Row, ...]:
    return (
        same(
            "model.type",
            {
                "model.aspp_conv": "depthwise+bn+1x1",
                "model.fusion": "1x1",
                "model.conv_bias": True,
                "model.dropout": 0.1,
                "model.decoder_conv": "depthwise+bn+1x1",
                "model.decoder_width": 256,
                "model.decoder_depth": 2,
                "model.low_level_width": 48,
            },
            "Fixed in its code.",
        ),
        same(
            "model.backbone.type",
            {
                "model.backbone": f"resnet{depth}",
                "model.stem": "3x3",
                "model.shortcut": "avgpool+1x1",
                "model.pool_dilated_shortcuts": False,
                "model.stage3_first_rate": 2,
            },
            "ResNet-D. Shortcuts of dilated stages do not pool, and the third stage's first block has its stage's rate.",
        ),
        equal("model.backbone.output_stride", "model.output_stride"),
        equal("model.backbone.multi_grid", "model.multi_grid"),
        differs(
            "model.backbone.pretrained",
            {"model.pretrained": f"hf:timm/resnet{depth}d.ra2_in1k"},
            "timm's ImageNet weights instead of PaddleClas's, which were distilled with SSLD.",
        ),
        same("model.num_classes", {"labels.num_classes": 19}, "Cityscapes' train ids."),
        same("model.backbone_indices", {}, "The decoder reads the first stage, the ASPP the last."),
        same("model.aspp_ratios", {"model.atrous_rates": (6, 12, 18)}, "Rates at output stride 16; doubled at 8."),
        equal("model.aspp_out_channels", "model.aspp_width"),
        equal("model.align_corners", "model.align_corners"),
        same("model.pretrained", {"model.aux_head": False}, "Only the backbone has weights. There is no auxiliary head."),
    )


def _list_training_rows() -> tuple[Row, ...]:
    return (
        same("(docs*).GPUs batch_size", {"data.batch_size": 8}, "The learning rates of its configs are for 4 GPUs."),
        equal("iters", "train.steps"),
        same("*_dataset.type *.dataset_root", {"data.root": ""}, "Set on the command line."),
        same("*_dataset.mode", {"data.train_split": "train", "eval.split": "val"}, "Fine annotations only."),
        differs(
            "*.ResizeStepScaling.*",
            {"data.scale": (0.5, 2.0)},
            "Drawn from the full range. PaddleSeg draws one of seven factors.",
        ),
        same("*.RandomHorizontalFlip", {"data.flip": True}, "Half of the samples."),
        differs(
            "*.RandomDistort.*",
            {"data.photometric": True},
            "The same four distortions, each in half of the samples, with mmsegmentation's ranges: 0.5 for contrast and "
            "saturation, an offset of 32 for the brightness, 36 degrees for the hue. PaddleSeg's default for the hue is 25 "
            "degrees.",
        ),
        same(
            "*.Normalize",
            {"model.mean": (127.5, 127.5, 127.5), "model.std": (127.5, 127.5, 127.5)},
            "Values from -1 to 1. Pixels outside the image are 0.",
        ),
        same("optimizer.type", {"optim.name": "sgd"}, "With momentum."),
        equal("optimizer.momentum", "optim.momentum"),
        equal("optimizer.weight_decay", "optim.weight_decay"),
        same("lr_scheduler.type", {"optim.schedule": "poly", "optim.warmup_steps": 0}, "By step."),
        equal("lr_scheduler.learning_rate", "optim.lr"),
        equal("lr_scheduler.end_lr", "optim.lr_end"),
        equal("lr_scheduler.power", "optim.power"),
        same("", {"loss.normalizer": "valid"}, "Its cross-entropy divides by the number of pixels that are not ignored."),
        same(
            "",
            {"eval.window": (0, 0), "eval.scales": (1.0,), "eval.flip": False},
            "The first score of its tables: the full image, once.",
        ),
        no_effect(
            "",
            {"train.eval_every": 8000, "train.log_every": 50, "train.save_every": 2000, "eval.batch_size": 8},
            "Flags of its training command.",
        ),
        differs("", {"model.dtype": "bfloat16"}, "PaddleSeg computes in float32."),
    )


SOURCE = "PaddleSeg at d7975e7c, configs/deeplabv3p/"
CROP = "train_dataset.transforms.RandomPaddingCrop.crop_size"
R50_RMI = Trace(
    "cityscapes_r50d_rmi",
    f"{SOURCE}deeplabv3p_resnet50_os8_cityscapes_1024x512_80k_rmiloss.yml, with the files that it inherits",
    "81.18 (configs/deeplabv3p/README.md: DeepLabV3P*, ResNet50_OS8; single scale; 80.36 without the RMI loss)",
    REFERENCE | RMI_CHANGES,
    (
        *list_rows(50),
        same(CROP, {"data.crop_size": (512, 1024)}, "Width and height."),
        same("loss.types", {"loss.terms": ("cross_entropy", "rmi")}, "Its RMILoss leaves out the cross-entropy."),
        equal("loss.types.MixedLoss.coef", "loss.weights"),
        same("loss.coef", {}, "The weight of their sum."),
    ),
    {1: ("11.93 GiB", "15 min 08 s", "36 min 49 s"), 8: ("1.75 GiB", "1 min 56 s", "4 min 36 s")},
)
R101_769 = Trace(
    "cityscapes_r101d_769",
    f"{SOURCE}deeplabv3p_resnet101_os8_cityscapes_769x769_80k.yml, with the files that it inherits",
    "81.53 (configs/deeplabv3p/README.md: DeepLabV3P, ResNet101_OS8, 769x769; single scale)",
    REFERENCE | R101_CHANGES,
    (
        *list_rows(101),
        equal(CROP, "data.crop_size"),
        same("loss.types", {"loss.terms": ("cross_entropy",)}, "Softmax."),
        equal("loss.coef", "loss.weights"),
        differs("val_dataset.transforms.Padding.target_size", {}, "Val images are not padded by one row and one column."),
    ),
    {1: ("21.14 GiB", "28 min 25 s", "1 h 11 min"), 8: ("3.09 GiB", "3 min 33 s", "8 min 53 s")},
)
