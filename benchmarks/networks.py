"""Our DeepLabV3 and torchvision's with the same weights and inputs, for the comparisons of `side_by_side`.

Only the functions that make one of the two import its framework. Weights follow from names and shapes (tests/parity/fill.py).
"""

import argparse
import functools
import pathlib
import sys
from typing import Any

import numpy as np

sys.path.append(str(pathlib.Path(__file__).parent.parent / "tests" / "parity"))

import fill
import side_by_side

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
CLASSES = 21


def flags(description: str, *, size: tuple[int, int], batch: int) -> argparse.ArgumentParser:
    """Which network runs on what, and how it is measured."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=50, choices=(50, 101))
    parser.add_argument("--output-stride", type=int, default=8, choices=(8, 16))
    parser.add_argument("--size", type=side_by_side.positive, nargs=2, default=size, metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--batch", type=side_by_side.positive, default=batch)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="bfloat16 is autocast in PyTorch")
    parser.add_argument("--compile", action="store_true", help="compare with torch.compile too")
    side_by_side.add_flags(parser)
    return parser


def compare(work: str, ours: side_by_side.Make, torchvision: Any, args: argparse.Namespace, bounds: dict[str, float]) -> None:
    """Measures and reports `work`, which `ours(args)` and `torchvision(args, compiled=...)` do; see `side_by_side.measure`."""
    sides = {"ours": ours, "torchvision, eager": functools.partial(torchvision, compiled=False)}
    if args.compile:
        sides["torchvision, torch.compile"] = functools.partial(torchvision, compiled=True)
    height, width = args.size
    described = f"ResNet-{args.depth}, output stride {args.output_stride}, {args.batch} x {height} x {width}, {args.dtype}"
    side_by_side.report(f"{work} of {described}", side_by_side.measure(sides, args, bounds), args, images=args.batch)


def images(args: argparse.Namespace) -> np.ndarray:
    """uint8 [batch, h, w, 3]."""
    return np.random.default_rng(0).integers(0, 256, (args.batch, *args.size, 3), np.uint8)


def labels(args: argparse.Namespace) -> np.ndarray:
    """uint8 [batch, h, w] in blocks of 16 pixels, some of it 255."""
    height, width = args.size
    blocks = np.random.default_rng(1).integers(0, CLASSES + 2, (args.batch, height // 16 + 1, width // 16 + 1), np.uint8)
    label = blocks.repeat(16, 1).repeat(16, 2)[:, :height, :width]
    return np.where(label < CLASSES, label, 255).astype(np.uint8)


def our_config(args: argparse.Namespace) -> Any:
    """torchvision's network and recipe as a config; dropout is off, since its random numbers cannot be shared."""
    from deeplab_jax.config import Config, DataConfig, LossConfig, MeshConfig, ModelConfig, OptimConfig
    from deeplab_jax.labels import VOC

    model = ModelConfig(
        backbone=f"resnet{args.depth}",
        output_stride=args.output_stride,
        fusion="1x1+3x3",
        aux_head=True,
        dropout=0.0,
        aux_dropout=0.0,
        dtype=args.dtype,
        mean=MEAN,
        std=STD,
    )
    loss, optim = LossConfig(aux_weight=0.5), OptimConfig(lr=0.0025)
    data = DataConfig(crop_size=tuple(args.size), batch_size=args.batch)
    return Config(labels=VOC, model=model, loss=loss, optim=optim, data=data, mesh=MeshConfig(data=1))


def our_variables(config: Any) -> dict[str, Any]:
    """{"params", "batch_stats"}: what `fill` gives for the names and shapes of torchvision's network."""
    import jax.numpy as jnp

    from deeplab_jax.weights import convert, names

    shapes = convert.variable_shapes(config)
    named = names.reference_names(shapes, config.model, "torchvision")
    axes = {path: (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape for path, shape in shapes.items()}
    state = fill.fill({name: axes[path] for path, name in named.items()})
    # Copies: memory that NumPy owns cannot be donated to a step.
    return names.unflatten(
        {
            path: jnp.array(names.from_reference(path, state.pop(name), config.model, "torchvision"))
            for path, name in named.items()
        }
    )


def our_versions() -> dict[str, str]:
    """Of what computes."""
    import flax
    import jax
    import jaxlib

    device = jax.devices()[0].device_kind
    return {"jax": jax.__version__, "jaxlib": jaxlib.__version__, "flax": flax.__version__, "device": device}


def our_device_peak() -> int | None:
    """Bytes of an accelerator's memory that were held at most."""
    import jax

    stats = jax.devices()[0].memory_stats()
    return stats["peak_bytes_in_use"] if stats and jax.default_backend() != "cpu" else None


class Torch:
    """torchvision's network on the fastest device, channels_last, under autocast where bfloat16 is asked for.

    Attributes:
      device: where it computes.
      network: the module itself, for its parameters.
      forward: from what `image` gives to {"out", "aux"} logits at the images' size; compiled if that was asked for.
    """

    def __init__(self, args: argparse.Namespace, *, train: bool, compiled: bool) -> None:
        import references
        import torch

        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.backends.cudnn.benchmark = True  # as in torchvision's training script
        self._dtype = args.dtype
        # torchvision offers output stride 8 alone.
        network = references.torchvision_network(args.depth)
        if args.output_stride == 16:
            from torchvision.models import resnet, segmentation

            backbone = getattr(resnet, f"resnet{args.depth}")(replace_stride_with_dilation=[False, False, True])
            network.backbone = type(network.backbone)(backbone, {"layer4": "out", "layer3": "aux"})
            network.classifier = segmentation.deeplabv3.DeepLabHead(2048, CLASSES, (6, 12, 18))
        values = fill.fill({name: tuple(value.shape) for name, value in network.state_dict().items()})
        network.load_state_dict({name: torch.from_numpy(value) for name, value in values.items()}, strict=False)
        if not train:
            network.aux_classifier = None
        for module in network.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        self.network = network.train(train).to(self.device, memory_format=torch.channels_last)
        self.forward = torch.compile(self.network) if compiled else self.network
        self._mean, self._std = (torch.tensor(values, device=self.device)[None, :, None, None] for values in (MEAN, STD))

    def image(self, pixels: np.ndarray) -> Any:
        """uint8 [n, 3, h, w] on the device, channels_last."""
        import torch

        return torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2)

    def logits(self, image: Any) -> dict[str, Any]:
        """{"out", "aux"} of what `image` gives."""
        import torch

        with torch.autocast(self.device, torch.bfloat16, enabled=self._dtype == "bfloat16"):
            return self.forward((image.float() - self._mean) / self._std)

    def synchronize(self) -> None:
        """Waits for the device."""
        import torch

        if self.device == "cuda":
            torch.cuda.synchronize()

    def device_peak(self) -> int | None:
        """Bytes of an accelerator's memory that were held at most."""
        import torch

        return torch.cuda.max_memory_allocated() if self.device == "cuda" else None

    def versions(self) -> dict[str, str]:
        """Of what computes."""
        import torch
        import torchvision

        device = torch.cuda.get_device_name() if self.device == "cuda" else "cpu"
        return {"torch": torch.__version__, "torchvision": torchvision.__version__, "device": device}
