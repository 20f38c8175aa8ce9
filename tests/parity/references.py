"""Build the reference implementations' networks for numerical comparisons.

This module needs torch and torchvision. The networks of other libraries also need the other packages:

  pip install torch torchvision
  pip install --no-deps mmsegmentation "mmcv-lite<2.2" mmengine
  pip install addict yapf termcolor rich opencv-python-headless prettytable ftfy regex
  pip install segmentation-models-pytorch
  pip install transformers

VainF's networks need the folder `network` of github.com/VainF/DeepLabV3Plus-Pytorch on PYTHONPATH.
"""

import functools
import importlib.machinery
import importlib.util
import itertools
import sys
import types
from collections.abc import Callable

import numpy as np
import torch


class _StandIn(types.ModuleType):
    """A stand-in for a compiled operator module. Each of its attributes is an empty class."""

    __all__ = ()

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__, self.__path__ = importlib.machinery.ModuleSpec(name, None), []

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def import_torchvision() -> None:
    """Import torchvision, without its compiled operators if they are incompatible with the installed torch."""
    try:
        import torchvision
    except (ImportError, RuntimeError, OSError):
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        for name in ("torchvision._meta_registrations", "torchvision._autograd_registrations"):
            sys.modules[name] = types.ModuleType(name)
        import torchvision  # noqa: F401


def import_mmseg() -> None:
    """Import mmsegmentation's models, with stand-ins for the compiled operators if only mmcv-lite is installed."""
    import_torchvision()
    if importlib.util.find_spec("mmcv._ext") is None:
        ops = ("", ".point_sample", ".carafe", ".multi_scale_deform_attn", ".modulated_deform_conv")
        sys.modules.update({name: _StandIn(name) for name in ("mmcv._ext", *(f"mmcv.ops{op}" for op in ops))})
    import mmseg.models  # noqa: F401


def make_torchvision_network(depth: int, aux: bool = True) -> torch.nn.Module:
    import_torchvision()
    from torchvision.models import segmentation

    build = getattr(segmentation, f"deeplabv3_resnet{depth}")
    return build(weights=None, weights_backbone=None, num_classes=21, aux_loss=aux)


def make_torchvision_mobilenet() -> torch.nn.Module:
    import_torchvision()
    from torchvision.models import segmentation

    return segmentation.deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=21, aux_loss=True)


def make_mmseg_network(
    depth: int,
    kind: str = "ResNetV1c",
    mg124: bool = False,
    align_corners: bool = False,
    aux: bool = True,
    plus: bool = False,
) -> torch.nn.Module:
    """Build a network from mmsegmentation's configs/deeplabv3/, or from configs/deeplabv3plus/ if `plus` is set.

    It is the "d16-mg124" variant if `mg124` is set, and otherwise "d8".
    """
    import_mmseg()
    from mmseg.registry import MODELS

    norm = {"type": "BN", "requires_grad": True}
    channels, width, aux_width = (512, 128, 64) if depth < 50 else (2048, 512, 256)
    strides, dilations, rates = (
        ((1, 2, 2, 1), (1, 1, 1, 2), (6, 12, 18)) if mg124 else ((1, 2, 1, 1), (1, 1, 2, 4), (12, 24, 36))
    )
    shared = {"num_classes": 19, "norm_cfg": norm, "align_corners": align_corners, "dropout_ratio": 0.1}
    shared["loss_decode"] = {"type": "CrossEntropyLoss", "use_sigmoid": False}
    backbone = {
        "type": kind,
        "depth": depth,
        "strides": strides,
        "dilations": dilations,
        "multi_grid": (1, 2, 4) if mg124 else None,
        "contract_dilation": True,
        "norm_cfg": norm,
        "style": "pytorch",
    }
    head = {"type": "ASPPHead", "in_channels": channels, "in_index": 3, "channels": width, "dilations": (1, *rates)}
    if plus:
        low, low_width = (64, 12) if depth < 50 else (256, 48)
        head |= {"type": "DepthwiseSeparableASPPHead", "c1_in_channels": low, "c1_channels": low_width}
    auxiliary = {"type": "FCNHead", "in_channels": channels // 2, "in_index": 2, "channels": aux_width, "num_convs": 1}
    network = {
        "type": "EncoderDecoder",
        "backbone": backbone,
        "decode_head": head | shared,
        "auxiliary_head": auxiliary | {"concat_input": False} | shared if aux else None,
        "train_cfg": {},
        "test_cfg": {"mode": "whole"},
    }
    return MODELS.build(network)


# The names of segmentation_models.pytorch's encoders in the names of networks.
SMP_ENCODERS = {
    "r18": "resnet18",
    "r34": "resnet34",
    "r50": "resnet50",
    "mobilenetv2": "mobilenet_v2",
    "lite0": "timm-tf_efficientnet_lite0",
    "lite1": "timm-tf_efficientnet_lite1",
    "lite2": "timm-tf_efficientnet_lite2",
}


def make_smp_network(encoder: str, plus: bool, output_stride: int) -> torch.nn.Module:
    """Build segmentation_models.pytorch's DeepLabV3, or its DeepLabV3Plus if `plus` is set, with 19 classes."""
    import_torchvision()
    import segmentation_models_pytorch as smp

    build = smp.DeepLabV3Plus if plus else smp.DeepLabV3
    return build(SMP_ENCODERS[encoder], encoder_weights=None, encoder_output_stride=output_stride, classes=19)


def smp_name(encoder: str, plus: bool, output_stride: int) -> str:
    """Return a network's name. It ends in the output stride if that is not the library's default."""
    suffix = "" if output_stride == (16 if plus else 8) else f"_os{output_stride}"
    return f"smp_{'plus_' if plus else ''}{encoder}{suffix}"


def make_vainf_network(name: str, output_stride: int, separable: bool = False) -> torch.nn.Module:
    """Build a network of VainF/DeepLabV3Plus-Pytorch, such as deeplabv3plus_resnet50, with 19 classes."""
    import_torchvision()
    import network

    build = getattr(network.modeling, name)
    model = build(num_classes=19, output_stride=output_stride, pretrained_backbone=False)
    if separable:
        network.convert_to_separable_conv(model.classifier)
    return model


VAINF_BACKBONES = {"r50": "resnet50", "r101": "resnet101", "mobilenetv2": "mobilenet"}


def make_huggingface_network(output_stride: int, depth_multiplier: float = 1.0) -> torch.nn.Module:
    """Build transformers' MobileNetV2ForSemanticSegmentation with 21 classes."""
    import_torchvision()
    from transformers import MobileNetV2Config, MobileNetV2ForSemanticSegmentation

    config = MobileNetV2Config(depth_multiplier=depth_multiplier, output_stride=output_stride, num_labels=21)
    return MobileNetV2ForSemanticSegmentation(config)


# Maps each name to the reference network's builder and the file name of its published weights. Some settings are read from the
# file name, because the tensors do not determine them.
NETWORKS: dict[str, tuple[Callable[[], torch.nn.Module], str]] = {
    "torchvision_r50": (lambda: make_torchvision_network(50), "deeplabv3_resnet50_coco"),
    "torchvision_r101": (lambda: make_torchvision_network(101), "deeplabv3_resnet101_coco"),
    "torchvision_r50_no_aux": (lambda: make_torchvision_network(50, aux=False), "deeplabv3_resnet50"),
    "torchvision_mobilenetv3": (make_torchvision_mobilenet, "deeplabv3_mobilenet_v3_large"),
    "mmseg_r18": (lambda: make_mmseg_network(18), "deeplabv3_r18-d8_512x1024_80k_cityscapes"),
    "mmseg_r50": (lambda: make_mmseg_network(50), "deeplabv3_r50-d8_512x1024_80k_cityscapes"),
    "mmseg_r101": (lambda: make_mmseg_network(101), "deeplabv3_r101-d8_512x1024_80k_cityscapes"),
    "mmseg_r101_mg124": (lambda: make_mmseg_network(101, mg124=True), "deeplabv3_r101-d16-mg124_512x1024_80k_cityscapes"),
    "mmseg_r50b": (lambda: make_mmseg_network(50, kind="ResNet"), "deeplabv3_r50b-d8_512x1024_80k_cityscapes"),
    "mmseg_r18b_769": (
        lambda: make_mmseg_network(18, kind="ResNet", align_corners=True),
        "deeplabv3_r18b-d8_769x769_80k_cityscapes",
    ),
    "mmseg_plus_r18": (lambda: make_mmseg_network(18, plus=True), "deeplabv3plus_r18-d8_512x1024_80k_cityscapes"),
    "mmseg_plus_r50": (lambda: make_mmseg_network(50, plus=True), "deeplabv3plus_r50-d8_512x1024_80k_cityscapes"),
    "mmseg_plus_r101": (lambda: make_mmseg_network(101, plus=True), "deeplabv3plus_r101-d8_512x1024_80k_cityscapes"),
    "mmseg_plus_r18b_769": (
        lambda: make_mmseg_network(18, kind="ResNet", align_corners=True, plus=True),
        "deeplabv3plus_r18b-d8_769x769_80k_cityscapes",
    ),
    "mmseg_r18d": (lambda: make_mmseg_network(18, kind="ResNetV1d"), "deeplabv3_r18d-d8_512x1024_80k_cityscapes"),
    "mmseg_r50d": (lambda: make_mmseg_network(50, kind="ResNetV1d"), "deeplabv3_r50d-d8_512x1024_80k_cityscapes"),
    "mmseg_plus_r101d_mg124": (
        lambda: make_mmseg_network(101, kind="ResNetV1d", mg124=True, plus=True),
        "deeplabv3plus_r101d-d16-mg124_512x1024_80k_cityscapes",
    ),
    "huggingface_narrow_os8": (lambda: make_huggingface_network(8, 0.35), "huggingface"),
    **{
        f"huggingface_os{stride}": (functools.partial(make_huggingface_network, stride), "huggingface")
        for stride in (8, 16, 32)
    },
    **{
        smp_name(*key): (functools.partial(make_smp_network, *key), "smp")
        for key in itertools.product(SMP_ENCODERS, (False, True), (8, 16))
    },
    **{
        f"vainf_{'plus_' if plus else ''}{short}_os{stride}": (
            functools.partial(make_vainf_network, f"deeplabv3{'plus' * plus}_{name}", stride),
            f"best_deeplabv3{'plus' * plus}_{name}_cityscapes_os{stride}",
        )
        for (short, name), plus, stride in itertools.product(VAINF_BACKBONES.items(), (False, True), (8, 16))
    },
    "vainf_plus_separable_r50": (
        functools.partial(make_vainf_network, "deeplabv3plus_resnet50", 16, separable=True),
        "best_deeplabv3plus_resnet50_cityscapes_os16",
    ),
}


def is_mmseg(network: torch.nn.Module) -> bool:
    return hasattr(network, "decode_head")


def compute_outputs(network: torch.nn.Module, images: np.ndarray, mean: np.ndarray, std: np.ndarray) -> dict[str, np.ndarray]:
    """Return a reference network's logits as NHWC arrays, at the stride of its features.

    Args:
      network: The reference network.
      images: The images, uint8 [n, h, w, 3].
      mean, std: The mean and standard deviation for normalization, in units of 0-255.

    Returns:
      A dict with the key "logits", and also "aux" if the network has an auxiliary head.
    """
    x = torch.from_numpy(((images.astype(np.float32) - mean) / std).transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        return {name: value.numpy().transpose(0, 2, 3, 1) for name, value in forward(network, x).items()}


def forward(network: torch.nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return a reference network's logits {"logits", "aux"} as NCHW tensors, at the stride of its features.

    "aux" is missing if the network has no auxiliary head.
    """
    if is_mmseg(network):
        features = network.extract_feat(x)
        heads = {"logits": network.decode_head, "aux": network.auxiliary_head if network.with_auxiliary_head else None}
        return {name: head(features) for name, head in heads.items() if head is not None}
    if type(network).__module__.startswith("network."):  # VainF's
        return {"logits": network.classifier(network.backbone(x))}
    if hasattr(network, "mobilenet_v2"):
        return {"logits": network(x).logits}
    if hasattr(network, "segmentation_head"):
        return {"logits": network.segmentation_head[0](network.decoder(network.encoder(x)))}
    features = network.backbone(x)
    outputs = {"logits": network.classifier(features["out"])}
    return outputs | ({"aux": network.aux_classifier(features["aux"])} if network.aux_classifier is not None else {})
