"""Load training samples in the usual PyTorch way. This is the baseline for input_pipeline.py.

The samples are decoded by Pillow, augmented by torchvision's v2 transforms and batched by PyTorch's DataLoader.
"""

import pathlib
import sys
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image

sys.path.append(str(pathlib.Path(__file__).parent.parent / "tests" / "parity"))

import references

references.import_torchvision()

from torchvision import tv_tensors  # noqa: E402
from torchvision.transforms import v2  # noqa: E402


class Pairs(torch.utils.data.Dataset):
    """A data set that cycles through the image and label pairs listed in list/train.lst."""

    def __init__(self, root: pathlib.Path, crop: tuple[int, int], size: tuple[int, int], length: int) -> None:
        lines = (root / "list" / "train.lst").read_text().splitlines()
        self.pairs = [[root / name for name in line.split("\t")] for line in lines]
        self.length = length
        self.transform = v2.Compose(
            [
                v2.ScaleJitter(size, (0.5, 2.0)),
                v2.RandomCrop(crop, pad_if_needed=True, fill={tv_tensors.Image: (124, 116, 104), tv_tensors.Mask: 255}),
                v2.RandomHorizontalFlip(),
                v2.RandomPhotometricDistort(),
            ]
        )

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        image, label = (np.array(Image.open(path)) for path in self.pairs[i % len(self.pairs)])
        return self.transform(
            tv_tensors.Image(torch.from_numpy(image).permute(2, 0, 1)), tv_tensors.Mask(torch.from_numpy(label))
        )


def batches(root: pathlib.Path, crop: tuple[int, int], size: tuple[int, int], batch_size: int, workers: int) -> Iterator:
    """Return an endless iterator over training batches."""
    pairs = Pairs(root, crop, size, length=10**9)
    sampler = torch.utils.data.RandomSampler(pairs.pairs, replacement=True, num_samples=10**6)
    loader = torch.utils.data.DataLoader(pairs, batch_size, sampler=sampler, num_workers=workers, drop_last=True)
    return iter(loader)
