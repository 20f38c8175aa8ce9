"""PaddlePaddle's tensor names for ResNets.

PaddleSeg numbers the blocks in each stage, as in "bb_1_0.conv2._conv.weight". PaddleClas also has files with these names. Its
newer files number all blocks in a row, as in "blocks.3.conv2.conv.weight".
"""

import re
from collections.abc import Sequence

from deeplab_jax.models.stages import Shapes

# A kernel in the first block.
FIRST_TENSORS = ("bb_0_0.conv0._conv.weight", "blocks.0.conv0.conv.weight")

_BLOCK = re.compile(r"bb_(\d)_(\d+)\.(?:conv(\d)|short)\.(_conv|_batch_norm)\.(\w+)")
_ROW_BLOCK = re.compile(r"blocks\.(\d+)\.(?:conv(\d)|short)\.(conv|bn)\.(\w+)")
_STEM = re.compile(r"(?:conv1_|stem\.)(\d)\.(_?conv)\.weight")
_LEAVES = {"_mean": "running_mean", "_variance": "running_var"}


def tensor_names(source: str, stem: str, blocks: Sequence[int]) -> dict[str, str]:
    """Return a dict mapping our layer names in a ResNet to those in "paddleseg" or "paddleclas".

    Args:
      source: The weights source.
      stem: The stem; see `config.ModelConfig`.
      blocks: The number of blocks in each stage.
    """
    is_seg = source == "paddleseg"
    conv, bn = ("_conv", "_batch_norm") if is_seg else ("conv", "bn")
    layers = {"": "stem.0"} if stem == "7x7" else {str(i): f"conv1_{i}" if is_seg else f"stem.{i - 1}" for i in (1, 2, 3)}
    names = {f"stem_conv{i}": f"{layer}.{conv}" for i, layer in layers.items()}
    names |= {f"stem_bn{i}": f"{layer}.{bn}" for i, layer in layers.items()}
    for stage, count in enumerate(blocks):
        for block in range(count):
            ours = f"stage{stage + 1}_block{block + 1}"
            theirs = f"bb_{stage}_{block}" if is_seg else f"blocks.{sum(blocks[:stage]) + block}"
            for i in (1, 2, 3):
                names |= {f"{ours}/conv{i}": f"{theirs}.conv{i - 1}.{conv}", f"{ours}/bn{i}": f"{theirs}.conv{i - 1}.{bn}"}
            names |= {f"{ours}/downsample_conv": f"{theirs}.short.{conv}", f"{ours}/downsample_bn": f"{theirs}.short.{bn}"}
    return names


def to_torchvision(shapes: Shapes) -> Shapes:
    """Return tensor shapes with PaddlePaddle's names replaced by those of torchvision and, for stem and shortcut, timm.

    The networks with three convolutions in their stem are called vd, and have pooled shortcuts. Shapes with other names are
    returned unchanged.
    """
    if not any(name in shapes for name in FIRST_TENSORS):
        return shapes
    stems = sorted(name for name in shapes if _STEM.fullmatch(name))
    is_deep = len(stems) == 3
    # Each stage starts with a block whose shortcut has a convolution.
    starts = sorted(int(match[1]) for name in shapes if (match := re.fullmatch(r"blocks\.(\d+)\.short\.conv\.weight", name)))
    renamed = {f"conv1.{3 * i}.weight" if is_deep else "conv1.weight": shapes[name] for i, name in enumerate(stems)}
    for name, shape in shapes.items():
        if match := _BLOCK.fullmatch(name):
            stage, block, conv, kind, leaf = int(match[1]) + 1, int(match[2]), match[3], match[4], match[5]
        elif match := _ROW_BLOCK.fullmatch(name):
            number, conv, kind, leaf = int(match[1]), match[2], match[3], match[4]
            stage = sum(start <= number for start in starts)
            block = number - starts[stage - 1] if stage else number
        else:
            continue
        is_conv = kind.endswith("conv")
        if conv is not None:
            layer = f"{'conv' if is_conv else 'bn'}{int(conv) + 1}"
        else:
            layer = f"downsample.{int(is_deep) + (not is_conv)}"
        renamed[f"layer{stage}.{block}.{layer}.{_LEAVES.get(leaf, leaf)}"] = shape
    return renamed
