"""The reference implementations of the losses, as functions of (logits, labels, settings) that return a torch or Paddle scalar.

Logits are [n, k, h, w], labels are [n, h, w] int64, and settings are fields of `LossConfig`. `losses.py` says what they need.
"""

import functools
import importlib
import sys
import types
from typing import Any

import numpy as np
import paddle
import references
import scipy.ndimage
import torch

Settings = dict[str, Any]


def cross_entropy_mmseg(logits: torch.Tensor, labels: torch.Tensor, settings: Settings) -> torch.Tensor:
    """Return the loss of mmsegmentation's CrossEntropyLoss, with the pixels that its OHEMPixelSampler keeps."""
    references.import_mmseg()
    from mmseg.models.losses import CrossEntropyLoss

    weights, over_all = settings.get("class_weights"), settings.get("normalizer") == "all"
    kept = sample_hard_pixels(logits, labels, settings)
    loss = CrossEntropyLoss(class_weight=weights, avg_non_ignore=not over_all)(logits, labels, weight=kept, ignore_index=255)
    if kept is None or over_all:
        return loss
    # mmsegmentation divides by the total weight of all valid pixels, whereas our loss divides by that of the hard pixels.
    class_weights = torch.tensor(weights or (1.0,) * logits.shape[1])
    pixel_weights = torch.where(labels == 255, 0.0, class_weights[torch.where(labels == 255, 0, labels)])
    return loss * pixel_weights.sum() / (pixel_weights * kept).sum()


def sample_hard_pixels(logits: torch.Tensor, labels: torch.Tensor, settings: Settings) -> torch.Tensor | None:
    """Return 1 for the pixels that mmsegmentation's sampler keeps, or None without hard example mining."""
    references.import_mmseg()
    from mmseg.structures.sampler import OHEMPixelSampler

    if not settings.get("ohem_threshold"):
        return None
    context = types.SimpleNamespace(ignore_index=255)
    return OHEMPixelSampler(context, settings["ohem_threshold"], settings["ohem_min_kept"]).sample(logits, labels[:, None])


def cross_entropy_torch(logits: torch.Tensor, labels: torch.Tensor, settings: Settings) -> torch.Tensor:
    weights = torch.tensor(settings["class_weights"]).to(logits) if "class_weights" in settings else None
    return torch.nn.CrossEntropyLoss(weights, ignore_index=255, label_smoothing=settings["label_smoothing"])(logits, labels)


def cross_entropy_nvidia(logits: torch.Tensor, labels: torch.Tensor, settings: Settings) -> torch.Tensor:
    """Return the loss of NVIDIA's ImgWtLossSoftNLL with the targets of its RelaxedBoundaryLossToTensor.

    NVIDIA adds up the images' losses, each divided by its number of pixels plus 1. Here, the loss is divided by the number of
    valid pixels, or by the sum of their mean class weights. Pixels with label 255 are ignored, even if a class is nearby.
    """
    classes = logits.shape[1]
    loss, transforms, cfg = import_nvidia()
    cfg.BORDER_WINDOW = settings["relax_border"]
    relax = transforms.RelaxedBoundaryLossToTensor(255, classes)
    criterion = loss.ImgWtLossSoftNLL(classes)
    class_weights = torch.tensor(settings.get("class_weights", (1.0,) * classes)).to(logits)
    total, total_weight = 0.0, 0.0
    for image, label in zip(logits, labels, strict=True):
        target = relax(label.numpy().astype(np.uint8))[None]
        count = target[:, :-1].sum(1).to(logits)
        ignored = (label == 255)[None]
        count[count == 0] = 1
        mean = criterion.custom_nll(image[None], target, class_weights, count, ignored)
        total += mean * ((~ignored).sum() + 1)
        weights = (target[:, :-1] * class_weights[:, None, None]).sum(1) / count
        total_weight += weights[~ignored].sum()
    return total / total_weight


@functools.cache
def import_nvidia() -> tuple[types.ModuleType, types.ModuleType, types.SimpleNamespace]:
    """Import the losses and the transforms of NVIDIA/semantic-segmentation, with stand-ins for what they do not need here."""
    references.import_torchvision()
    cfg = types.SimpleNamespace(BATCH_WEIGHTING=False, STRICTBORDERCLASS=None, REDUCE_BORDER_EPOCH=-1)
    cfg.DATASET = types.SimpleNamespace(IGNORE_LABEL=255)
    stand_ins = {"config": {"cfg": cfg}, "runx": {}, "runx.logx": {"logx": None}, "loss.rmi": {"RMILoss": None}}
    for name, values in stand_ins.items():
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(values)
    sys.modules["scipy.ndimage.interpolation"] = scipy.ndimage  # removed from SciPy
    return importlib.import_module("loss.utils"), importlib.import_module("transforms.transforms"), cfg


def dice_smp(logits: torch.Tensor, labels: torch.Tensor, settings: Settings) -> torch.Tensor:
    """Return the mean of DiceLoss over the images. Every image must contain all classes."""
    import segmentation_models_pytorch.losses

    loss = segmentation_models_pytorch.losses.DiceLoss("multiclass", ignore_index=255)
    return torch.stack([loss(image[None], label[None]) for image, label in zip(logits, labels, strict=True)]).mean()


def lovasz_smp(logits: torch.Tensor, labels: torch.Tensor, settings: Settings) -> torch.Tensor:
    import segmentation_models_pytorch.losses

    return segmentation_models_pytorch.losses.LovaszLoss("multiclass", per_image=True, ignore_index=255)(logits, labels)


def focal_paddleseg(logits: paddle.Tensor, labels: paddle.Tensor, settings: Settings) -> paddle.Tensor:
    from paddleseg.models.losses.focal_loss import MultiClassFocalLoss

    return MultiClassFocalLoss(gamma=settings["focal_gamma"])(logits, labels)


def rmi_paddleseg(logits: paddle.Tensor, labels: paddle.Tensor, settings: Settings) -> paddle.Tensor:
    from paddleseg.models.losses import RMILoss

    # `forward` would convert the logits to float32 first.
    return RMILoss(num_classes=logits.shape[1]).forward_sigmoid(logits, labels)
