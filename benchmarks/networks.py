"""Build this package's DeepLabV3 and torchvision's with the same weights and inputs, to be compared by `side_by_side`.

Only the functions that need JAX or PyTorch import them. The weights are generated from the tensor names and shapes
(tests/parity/fill.py).
"""

import argparse
import functools
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

sys.path.append(str(pathlib.Path(__file__).parent.parent / "tests" / "parity"))

import fill
import side_by_side

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
CLASSES = 21


def build_parser(description: str, *, size: tuple[int, int], batch: int) -> argparse.ArgumentParser:
    """Return a parser with flags for the network, its input and the measurement."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=50, choices=(50, 101))
    parser.add_argument("--output-stride", type=int, default=8, choices=(8, 16))
    parser.add_argument("--size", type=side_by_side.positive, nargs=2, default=size, metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--batch", type=side_by_side.positive, default=batch)
    parser.add_argument(
        "--dtype", default="float32", choices=("float32", "bfloat16"), help="PyTorch computes bfloat16 under autocast"
    )
    parser.add_argument("--compile", action="store_true", help="also measure torch.compile")
    side_by_side.add_flags(parser)
    return parser


def compare(work: str, ours: side_by_side.Make, torchvision: Any, args: argparse.Namespace, bounds: dict[str, float]) -> None:
    """Measure the same work in both implementations and print a report.

    Args:
      work: The name of the measured work, used in the report title.
      ours: Builds this package's work from the flags. See `side_by_side.Make`.
      torchvision: Builds torchvision's work from the flags. Its `compiled` argument turns on torch.compile.
      args: The program's flags.
      bounds: The largest allowed relative errors between the implementations. See `side_by_side.measure`.
    """
    sides = {"ours": ours, "torchvision, eager": functools.partial(torchvision, compiled=False)}
    if args.compile:
        sides["torchvision, torch.compile"] = functools.partial(torchvision, compiled=True)
    height, width = args.size
    network = f"ResNet-{args.depth}, output stride {args.output_stride}, {args.batch} x {height} x {width}, {args.dtype}"
    side_by_side.report(f"{work} of {network}", side_by_side.measure(sides, args, bounds), args, images=args.batch)


def random_images(args: argparse.Namespace) -> np.ndarray:
    """Return random uint8 images [batch, h, w, 3]."""
    return np.random.default_rng(0).integers(0, 256, (args.batch, *args.size, 3), np.uint8)


def random_labels(args: argparse.Namespace) -> np.ndarray:
    """Return random uint8 labels [batch, h, w]. They are constant over 16x16-pixel blocks, and some blocks are 255."""
    height, width = args.size
    blocks = np.random.default_rng(1).integers(0, CLASSES + 2, (args.batch, height // 16 + 1, width // 16 + 1), np.uint8)
    label = blocks.repeat(16, 1).repeat(16, 2)[:, :height, :width]
    return np.where(label < CLASSES, label, 255).astype(np.uint8)


def our_config(args: argparse.Namespace) -> Any:
    """Return a config that matches torchvision's network and recipe but has no dropout, because dropout is random."""
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
    """Return our network's {"params", "batch_stats"} with the same weights as torchvision's network.

    `fill` generates the values from torchvision's tensor names and shapes.
    """
    import jax.numpy as jnp

    from deeplab_jax.weights import convert, names

    shapes = convert.variable_shapes(config)
    named = names.reference_names(shapes, config.model, "torchvision")
    axes = {path: (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape for path, shape in shapes.items()}
    state = fill.fill({name: axes[path] for path, name in named.items()})
    # Copy the values with `jnp.array`, because memory owned by NumPy cannot be donated to a training step.
    return names.unflatten(
        {
            path: jnp.array(names.from_reference(path, state.pop(name), config.model, "torchvision"))
            for path, name in named.items()
        }
    )


def our_versions() -> dict[str, str]:
    """Return a dict of the library versions and the device name."""
    import flax
    import jax
    import jaxlib

    device = jax.devices()[0].device_kind
    return {"jax": jax.__version__, "jaxlib": jaxlib.__version__, "flax": flax.__version__, "device": device}


def our_device_peak() -> int | None:
    """Return the accelerator's peak memory in bytes, or None on a CPU."""
    import jax

    stats = jax.devices()[0].memory_stats()
    return stats["peak_bytes_in_use"] if stats and jax.default_backend() != "cpu" else None


class Torch:
    """torchvision's network in channels_last layout. It runs on a GPU if one is available, and uses autocast for bfloat16.

    `make_network` builds another network than DeepLabV3 with the ResNet of `args.depth`.

    Attributes:
      device: The device on which the network runs, "cuda" or "cpu".
      network: The PyTorch module, which holds the parameters.
      forward: Maps normalised images to a dict of "out" and "aux" logits at image size. This is `network` or its compiled
        version.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        *,
        train: bool,
        compiled: bool,
        make_network: Callable[[argparse.Namespace], Any] | None = None,
    ) -> None:
        import torch

        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.backends.cudnn.benchmark = True  # as in torchvision's training script
        if self.device == "cuda":
            # Allow TF32 in matrix products, as cuDNN and JAX already do in convolutions.
            torch.set_float32_matmul_precision("high")
        self._dtype = args.dtype
        network = (make_network or _make_torchvision_network)(args)
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
        """Copy uint8 images [n, h, w, 3] to the device. The result has shape [n, 3, h, w] and channels_last layout."""
        import torch

        return torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2)

    def logits(self, image: Any) -> dict[str, Any]:
        """Return a dict of "out" and "aux" logits for images prepared by `image`."""
        import torch

        with torch.autocast(self.device, torch.bfloat16, enabled=self._dtype == "bfloat16"):
            return self.forward((image.float() - self._mean) / self._std)

    def synchronize(self) -> None:
        """Wait until the device has finished its work."""
        import torch

        if self.device == "cuda":
            torch.cuda.synchronize()

    def device_peak(self) -> int | None:
        """Return the accelerator's peak memory in bytes, or None on a CPU."""
        import torch

        return torch.cuda.max_memory_allocated() if self.device == "cuda" else None

    def versions(self) -> dict[str, str]:
        """Return a dict of the library versions and the device name."""
        import torch
        import torchvision

        device = torch.cuda.get_device_name() if self.device == "cuda" else "cpu"
        return {"torch": torch.__version__, "torchvision": torchvision.__version__, "device": device}


def _make_torchvision_network(args: argparse.Namespace) -> Any:
    import references

    # torchvision only offers output stride 8.
    network = references.make_torchvision_network(args.depth)
    if args.output_stride == 16:
        from torchvision.models import resnet, segmentation

        backbone = getattr(resnet, f"resnet{args.depth}")(replace_stride_with_dilation=[False, False, True])
        network.backbone = type(network.backbone)(backbone, {"layer4": "out", "layer3": "aux"})
        network.classifier = segmentation.deeplabv3.DeepLabHead(2048, CLASSES, (6, 12, 18))
    return network
