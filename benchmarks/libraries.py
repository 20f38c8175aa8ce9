"""Compare the prediction times of this package's networks and other libraries' semantic segmentation networks.

pip install torch torchvision segmentation-models-pytorch ultralytics mmsegmentation mmcv
python benchmarks/libraries.py --size 512 1024

All networks have 19 classes and random weights, compute in float32, and return logits resized to the image size. Within a
group, our network has the same layers as the other library's. Ultralytics has no DeepLabV3, so its networks do not do the same
work. TensorFlow is not needed.
"""

import argparse
import functools
from typing import Any

import networks
import numpy as np
import side_by_side

CLASSES = 19
GROUPS = {
    "DeepLabV3, ResNet-50, output stride 8": ("ours", "torchvision", "smp"),
    "DeepLabV3, ResNet-50, output stride 16": ("ours", "smp"),
    "DeepLabV3, ResNet-50-C, ASPP width 512, output stride 8": ("ours", "mmsegmentation"),
    "Ultralytics": ("yolo26s-sem", "yolo26x-sem"),
}


def build_ours(args: argparse.Namespace, *, output_stride: int, like_mmseg: bool) -> side_by_side.Side:
    """Build this package's inference with the same layers as torchvision's or mmsegmentation's network."""
    import jax

    from deeplab_jax.config import Config, ModelConfig
    from deeplab_jax.evaluation import inference
    from deeplab_jax.models import DeepLabV3
    from deeplab_jax.runtime.compilation import compile_program, enable_compilation_cache

    enable_compilation_cache()
    style = {"stem": "3x3", "aspp_width": 512, "fusion": "3x3"} if like_mmseg else {"fusion": "1x1+3x3"}
    config = Config(model=ModelConfig(backbone="resnet50", output_stride=output_stride, **style))
    network = DeepLabV3(config.model, CLASSES)
    variables = jax.jit(lambda: network.init(jax.random.key(0), np.zeros((1, 64, 64, 3), np.float32), False))()
    images = jax.device_put(networks.random_images(args))
    compute = compile_program(inference.jit_by_config(inference.logits, config), variables, images)
    return side_by_side.Side(
        numbers=lambda: {"logits": np.asarray(compute(variables, images))},
        run=lambda: jax.block_until_ready(compute(variables, images)),
        device_peak=networks.our_device_peak,
        versions=networks.our_versions(),
    )


def make_torch_network(library: str, output_stride: int) -> Any:
    """Return another library's module, with random weights."""
    if library == "torchvision":
        from torchvision.models.segmentation import deeplabv3_resnet50

        return deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=CLASSES)
    if library == "smp":
        import segmentation_models_pytorch as smp

        return smp.DeepLabV3("resnet50", encoder_weights=None, classes=CLASSES, encoder_output_stride=output_stride)
    if library == "mmsegmentation":
        import mmseg.models  # noqa: F401  # registers the networks
        from mmseg.registry import MODELS

        return MODELS.build(
            {
                "type": "EncoderDecoder",
                "backbone": {
                    "type": "ResNetV1c",
                    "depth": 50,
                    "strides": (1, 2, 1, 1),
                    "dilations": (1, 1, 2, 4),
                    "contract_dilation": True,
                },
                "decode_head": {
                    "type": "ASPPHead",
                    "in_channels": 2048,
                    "in_index": 3,
                    "channels": 512,
                    "dilations": (1, 12, 24, 36),
                    "num_classes": CLASSES,
                    "norm_cfg": {"type": "BN"},
                },
                "test_cfg": {"mode": "whole"},
            }
        )
    from ultralytics import YOLO

    return YOLO(f"{library}.yaml").model


def build_torch(args: argparse.Namespace, *, library: str, output_stride: int) -> side_by_side.Side:
    """Build another library's inference, which runs in eager PyTorch with the channels_last layout."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = make_torch_network(library, output_stride).eval().to(device, memory_format=torch.channels_last)
    image = torch.from_numpy(networks.random_images(args)).to(device).permute(0, 3, 1, 2)

    @torch.inference_mode()
    def compute() -> Any:
        outputs = network((image.float() - 120) / 60)
        logits = outputs["out"] if isinstance(outputs, dict) else outputs
        if logits.shape[2:] != image.shape[2:]:
            logits = torch.nn.functional.interpolate(logits, image.shape[2:], mode="bilinear")
        if device == "cuda":
            torch.cuda.synchronize()
        return logits

    return side_by_side.Side(
        numbers=lambda: {"logits": compute().permute(0, 2, 3, 1).cpu().numpy()},
        run=compute,
        device_peak=lambda: torch.cuda.max_memory_allocated() if device == "cuda" else None,
        versions={"torch": torch.__version__},
    )


def build_side(library: str, group: str) -> side_by_side.Make:
    """Return the function that builds a library's inference for a group in GROUPS."""
    output_stride = 16 if group.endswith("16") else 8
    if library == "ours":
        return functools.partial(build_ours, output_stride=output_stride, like_mmseg="512" in group)
    return functools.partial(build_torch, library=library, output_stride=output_stride)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=side_by_side.positive, nargs=2, default=(512, 1024), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--batch", type=side_by_side.positive, default=1)
    side_by_side.add_flags(parser)
    arguments = parser.parse_args()
    for group, libraries in GROUPS.items():
        sides = {library: build_side(library, group) for library in libraries}
        side_by_side.report(group, side_by_side.measure(sides, arguments, bounds={}), arguments, images=arguments.batch)
