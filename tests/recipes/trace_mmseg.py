"""mmsegmentation's DeepLabV3+ configs for Cityscapes, crops of 512x1024 and 80,000 steps."""

from trace_rows import Row, Trace, differs, equal, no_effect, same

REFERENCE = {
    "(file name).GPUs": 4,
    "(decode_heads).init_cfg": "Normal, std=0.01, of conv_seg",
    "data_preprocessor.mean": (123.675, 116.28, 103.53),
    "data_preprocessor.std": (58.395, 57.12, 57.375),
    "data_preprocessor.bgr_to_rgb": True,
    "data_preprocessor.pad_val": 0,
    "data_preprocessor.seg_pad_val": 255,
    "data_preprocessor.size": (512, 1024),
    "model.type": "EncoderDecoder",
    "model.pretrained": "open-mmlab://resnet50_v1c",
    "model.backbone.type": "ResNetV1c",
    "model.backbone.depth": 50,
    "model.backbone.num_stages": 4,
    "model.backbone.out_indices": (0, 1, 2, 3),
    "model.backbone.dilations": (1, 1, 2, 4),
    "model.backbone.strides": (1, 2, 1, 1),
    "model.backbone.norm_cfg": "SyncBN, requires_grad=True",
    "model.backbone.norm_eval": False,
    "model.backbone.style": "pytorch",
    "model.backbone.contract_dilation": True,
    "model.decode_head.type": "DepthwiseSeparableASPPHead",
    "model.decode_head.in_channels": 2048,
    "model.decode_head.in_index": 3,
    "model.decode_head.channels": 512,
    "model.decode_head.dilations": (1, 12, 24, 36),
    "model.decode_head.c1_in_channels": 256,
    "model.decode_head.c1_channels": 48,
    "model.decode_head.dropout_ratio": 0.1,
    "model.decode_head.num_classes": 19,
    "model.decode_head.norm_cfg": "SyncBN, requires_grad=True",
    "model.decode_head.align_corners": False,
    "model.decode_head.loss_decode.type": "CrossEntropyLoss",
    "model.decode_head.loss_decode.use_sigmoid": False,
    "model.decode_head.loss_decode.loss_weight": 1.0,
    "model.auxiliary_head.type": "FCNHead",
    "model.auxiliary_head.in_channels": 1024,
    "model.auxiliary_head.in_index": 2,
    "model.auxiliary_head.channels": 256,
    "model.auxiliary_head.num_convs": 1,
    "model.auxiliary_head.concat_input": False,
    "model.auxiliary_head.dropout_ratio": 0.1,
    "model.auxiliary_head.num_classes": 19,
    "model.auxiliary_head.norm_cfg": "SyncBN, requires_grad=True",
    "model.auxiliary_head.align_corners": False,
    "model.auxiliary_head.loss_decode.type": "CrossEntropyLoss",
    "model.auxiliary_head.loss_decode.use_sigmoid": False,
    "model.auxiliary_head.loss_decode.loss_weight": 0.4,
    "model.train_cfg": {},
    "model.test_cfg.mode": "whole",
    "dataset_type": "CityscapesDataset",
    "data_root": "data/cityscapes/",
    "train_pipeline.RandomResize.scale": (2048, 1024),
    "train_pipeline.RandomResize.ratio_range": (0.5, 2.0),
    "train_pipeline.RandomResize.keep_ratio": True,
    "train_pipeline.RandomCrop.crop_size": (512, 1024),
    "train_pipeline.RandomCrop.cat_max_ratio": 0.75,
    "train_pipeline.RandomFlip.prob": 0.5,
    "train_pipeline.PhotoMetricDistortion": "its defaults",
    "train_pipeline.LoadImageFromFile, LoadAnnotations, PackSegInputs": "their defaults",
    "test_pipeline.Resize.scale": (2048, 1024),
    "test_pipeline.Resize.keep_ratio": True,
    "test_pipeline.LoadImageFromFile, LoadAnnotations, PackSegInputs": "their defaults",
    "train_dataloader.batch_size": 2,
    "train_dataloader.num_workers": 2,
    "train_dataloader.persistent_workers": True,
    "train_dataloader.sampler": "InfiniteSampler, shuffle=True",
    "train_dataloader.dataset.data_prefix": "leftImg8bit/train, gtFine/train",
    "val_dataloader.batch_size": 1,
    "val_dataloader.num_workers": 4,
    "val_dataloader.persistent_workers": True,
    "val_dataloader.sampler": "DefaultSampler, shuffle=False",
    "val_dataloader.dataset.data_prefix": "leftImg8bit/val, gtFine/val",
    "val_evaluator": "IoUMetric, iou_metrics=['mIoU']",
    "optim_wrapper.type": "OptimWrapper",
    "optim_wrapper.clip_grad": None,
    "optim_wrapper.optimizer.type": "SGD",
    "optim_wrapper.optimizer.lr": 0.01,
    "optim_wrapper.optimizer.momentum": 0.9,
    "optim_wrapper.optimizer.weight_decay": 0.0005,
    "param_scheduler.type": "PolyLR",
    "param_scheduler.eta_min": 1e-4,
    "param_scheduler.power": 0.9,
    "param_scheduler.begin": 0,
    "param_scheduler.end": 80_000,
    "param_scheduler.by_epoch": False,
    "train_cfg.type": "IterBasedTrainLoop",
    "train_cfg.max_iters": 80_000,
    "train_cfg.val_interval": 8000,
    "val_cfg.type": "ValLoop",
    "default_hooks.logger.interval": 50,
    "default_hooks.checkpoint.interval": 8000,
    "default_hooks.timer, param_scheduler, sampler_seed, visualization": "their defaults",
    "default_scope": "mmseg",
    "env_cfg.cudnn_benchmark": True,
    "env_cfg.mp_cfg": "fork, opencv_num_threads=0",
    "env_cfg.dist_cfg.backend": "nccl",
    "vis_backends": "LocalVisBackend",
    "visualizer": "SegLocalVisualizer",
    "log_processor.by_epoch": False,
    "log_level": "INFO",
    "load_from": None,
    "resume": False,
    "tta_model": "SegTTAModel",
}


def list_rows(depth: int) -> tuple[Row, ...]:
    return (*_list_network_rows(depth), *_list_data_rows(), *_list_training_rows())


def _list_network_rows(depth: int) -> tuple[Row, ...]:
    return (
        same("model.type", {}, "A backbone and a head."),
        differs(
            "model.pretrained",
            {"model.pretrained": f"hf:timm/resnet{depth}c.gluon_in1k"},
            "timm's ImageNet weights of the same architecture.",
        ),
        same("model.backbone.type", {"model.stem": "3x3", "model.shortcut": "1x1"}, "A stem of three 3x3 convolutions."),
        same(
            "model.backbone.depth model.backbone.num_stages", {"model.backbone": f"resnet{depth}", "model.width": 64}, "ResNet."
        ),
        same(
            "model.backbone.strides model.backbone.dilations model.backbone.contract_dilation",
            {"model.output_stride": 8, "model.multi_grid": (0.5, 1.0, 1.0), "model.stage3_first_rate": 1},
            "The last two stages have the rates 2 and 4, and their first blocks half of that.",
        ),
        same("model.backbone.style", {}, "Strides are in the 3x3 convolutions."),
        same("model.backbone.out_indices model.*.in_index model.*.in_channels *.c1_in_channels", {}, "Fixed by the network."),
        same("model.*.norm_cfg model.backbone.norm_eval", {"optim.frozen": ()}, "BatchNorm over the batch of all devices."),
        same(
            "model.decode_head.type",
            {
                "model.aspp_conv": "depthwise+bn+relu+1x1",
                "model.fusion": "3x3",
                "model.decoder_conv": "depthwise+bn+relu+1x1",
                "model.decoder_depth": 2,
                "model.conv_bias": False,
            },
            "Its separable convolutions, and a full 3x3 convolution that fuses the branches.",
        ),
        same("model.decode_head.channels", {"model.aspp_width": 512, "model.decoder_width": 512}, "One value for both."),
        same("model.decode_head.dilations", {"model.atrous_rates": (6, 12, 18)}, "Rates at output stride 16; doubled at 8."),
        equal("model.decode_head.c1_channels", "model.low_level_width"),
        same(
            "model.decode_head.dropout_ratio",
            {"model.dropout": 0.0, "model.decoder_dropout": 0.1},
            "Its only dropout is before the classifier.",
        ),
        differs("(decode_heads).init_cfg", {}, "Classifiers start with Glorot's uniform kernels, which are larger."),
        same("model.*.num_classes", {"labels.num_classes": 19}, "Cityscapes' train ids."),
        equal("model.decode_head.align_corners", "model.align_corners"),
        same("model.auxiliary_head.align_corners", {}, "As the main head."),
        same(
            "model.*.loss_decode.type model.*.loss_decode.use_sigmoid model.decode_head.loss_decode.loss_weight",
            {"loss.terms": ("cross_entropy",), "loss.weights": (1.0,), "loss.normalizer": "all"},
            "Softmax. By default, it divides by the number of all pixels, with those that are ignored.",
        ),
        equal("model.auxiliary_head.loss_decode.loss_weight", "loss.aux_weight"),
        equal("model.auxiliary_head.dropout_ratio", "model.aux_dropout"),
        same(
            "model.auxiliary_head.type model.auxiliary_head.channels *.num_convs *.concat_input",
            {"model.aux_head": True},
            "One 3x3 convolution with 256 channels on the third stage.",
        ),
    )


def _list_data_rows() -> tuple[Row, ...]:
    return (
        equal("data_preprocessor.mean", "model.mean"),
        equal("data_preprocessor.std", "model.std"),
        same("data_preprocessor.bgr_to_rgb", {}, "Images are read as RGB."),
        differs(
            "data_preprocessor.pad_val",
            {},
            "Outside the image, 0 after the normalisation for both. But colours are distorted after padding, not before.",
        ),
        same("data_preprocessor.seg_pad_val", {}, "Ignored."),
        equal("train_pipeline.RandomCrop.crop_size", "data.crop_size"),
        same("data_preprocessor.size", {}, "As the crop."),
        same("(file*).GPUs train_dataloader.batch_size", {"data.batch_size": 8}, "4 GPUs with 2 images each."),
        same("train_pipeline.RandomResize.scale train_pipeline.RandomResize.keep_ratio", {}, "The size of the images."),
        equal("train_pipeline.RandomResize.ratio_range", "data.scale"),
        differs(
            "train_pipeline.RandomCrop.cat_max_ratio",
            {"data.cat_max_ratio": 0.75},
            "Checked before the crop is resized instead of after.",
        ),
        same("train_pipeline.RandomFlip.prob", {"data.flip": True}, "Half of the samples."),
        differs(
            "train_pipeline.PhotoMetricDistortion",
            {"data.photometric": True},
            "Not rounded to 8 bits after each operation. The hue is drawn from a continuous range.",
        ),
        same("*.LoadImageFromFile* dataset_type data_root", {"data.root": ""}, "Set on the command line."),
        same("*.data_prefix", {"data.train_split": "train", "eval.split": "val"}, "Fine annotations only."),
        differs(
            "train_dataloader.sampler",
            {"seed": 0},
            "Every image once per epoch, in an order of our own. mmsegmentation's seed is random.",
        ),
    )


def _list_training_rows() -> tuple[Row, ...]:
    return (
        same("optim_wrapper.optimizer.type", {"optim.name": "sgd"}, "torch.optim.SGD."),
        equal("optim_wrapper.optimizer.lr", "optim.lr"),
        equal("optim_wrapper.optimizer.momentum", "optim.momentum"),
        equal("optim_wrapper.optimizer.weight_decay", "optim.weight_decay"),
        same("optim_wrapper.type", {"train.micro_batches": 1}, "One update for each batch."),
        same("optim_wrapper.clip_grad", {"optim.clip_norm": 0.0}, "No clipping."),
        same(
            "param_scheduler.type param_scheduler.begin param_scheduler.end param_scheduler.by_epoch",
            {"optim.schedule": "poly", "optim.warmup_steps": 0},
            "Over the full run, by step.",
        ),
        equal("param_scheduler.eta_min", "optim.lr_end"),
        equal("param_scheduler.power", "optim.power"),
        equal("train_cfg.max_iters", "train.steps"),
        equal("train_cfg.val_interval", "train.eval_every"),
        equal("default_hooks.logger.interval", "train.log_every"),
        no_effect("default_hooks.checkpoint.interval", {"train.save_every": 2000}, "More checkpoints lose less."),
        same(
            "model.test_cfg.mode test_pipeline.Resize.* val_evaluator",
            {"eval.window": (0, 0), "eval.scales": (1.0,), "eval.flip": False, "eval.output_stride": 0},
            "The full image at its own size, once. mIoU over all pixels of the split.",
        ),
        no_effect(
            "val_dataloader.batch_size val_dataloader.num_workers val_dataloader.sampler", {"eval.batch_size": 8}, "Speed only."
        ),
        no_effect(
            "train_dataloader.num_workers *.persistent_workers env_cfg.* vis* log_* default_scope default_hooks.timer* "
            "*_cfg.type load_from resume model.train_cfg tta_model",
            {},
            "Not part of the training, or empty.",
        ),
        differs("", {"model.dtype": "bfloat16"}, "mmsegmentation computes in float32."),
    )


def make_trace(depth: int, score: str, plan: dict[int, tuple[str, str, str]]) -> Trace:
    changes = {"model.pretrained": f"open-mmlab://resnet{depth}_v1c", "model.backbone.depth": depth}
    return Trace(
        f"cityscapes_r{depth}_v3plus",
        f"mmsegmentation 1.x, configs/deeplabv3plus/deeplabv3plus_r{depth}-d8_4xb2-80k_cityscapes-512x1024.py, with the files "
        "that it inherits. The published weights were trained with version 0.5, whose config had another form.",
        f"{score} (configs/deeplabv3plus/README.md: R-{depth}-D8, 512x1024, 80000; single scale)",
        REFERENCE | changes,
        list_rows(depth),
        plan,
    )


R50 = make_trace(50, "80.09", {1: ("14.10 GiB", "24 min 03 s", "1 h 00 min"), 8: ("2.19 GiB", "3 min 00 s", "7 min 30 s")})
R101 = make_trace(101, "80.97", {1: ("20.68 GiB", "34 min 05 s", "1 h 25 min"), 8: ("3.20 GiB", "4 min 15 s", "10 min 39 s")})
