"""Check input images, draw label maps in colour, and write predictions as PNG files."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import UInt8
from PIL import Image

from deeplab_jax.errors import DataError, one_line
from deeplab_jax.files import write_atomically
from deeplab_jax.labels import LabelSet


def require_images(images: Any, channels: int) -> UInt8[np.ndarray, "n c h w"]:
    """Return `images` as an array after checking its dtype and shape.

    Args:
      images: The images, NCHW.
      channels: The required number of channels.

    Raises:
      DataError: The dtype or shape is wrong, or the array is empty.
    """
    kind = "RGB images" if channels == 3 else f"images with {channels} channel{'s' * (channels > 1)}"
    wanted = f"Give {kind} as uint8 [n, {channels}, h, w]."
    if isinstance(images, list | tuple) and len({np.shape(image) for image in images if hasattr(image, "shape")}) > 1:
        raise DataError(
            f"`images` (={len(images)} images of different shapes) cannot be used. Call once for each size. {wanted}"
        )
    try:
        array = np.asarray(images)
    except Exception as error:  # any library's arrays can be given, with any errors
        raise DataError(f"`images` (={type(images).__name__}) is not an array ({one_line(error)}). {wanted}") from None
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[1] != channels or 0 in array.shape:
        hint = _suggest_conversion(images, array, channels)
        raise DataError(f"`images` (={array.dtype} {list(array.shape)}) cannot be used. {hint}{wanted}")
    return array


def _suggest_conversion(images: Any, array: np.ndarray, channels: int) -> str:
    """Return a sentence for a common mistake, followed by a space, or ""."""
    first = images[0] if isinstance(images, list | tuple) and images else images
    # Pillow's images and PyTorch's tensors have methods of this name with other arguments.
    name = "images" if isinstance(images, np.ndarray) else "np.asarray(images)"
    if isinstance(first, str | bytes | os.PathLike):
        return "Read the files first, or use `deeplab-jax predict`. "
    if array.dtype == object and array.ndim:
        return "All images in a batch must have the same size. "
    if array.ndim == 3 and channels in (array.shape[0], array.shape[2]):
        return f"Give a single image as {name}{'' if array.shape[0] == channels else '.transpose(2, 0, 1)'}[None]. "
    if array.ndim == 4 and array.shape[1] != channels and array.shape[3] == channels:
        return f"Its channels are last, so use {name}.transpose(0, 3, 1, 2). "
    if array.dtype.kind == "f" and array.size:
        return "Do not normalise or scale the values: they must be whole numbers from 0 to 255. "
    return ""


def to_rgb(image: UInt8[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h w 3"]:
    """Return an RGB view of an image with any number of channels, for pictures.

    The first three channels are shown as red, green and blue. With one or two channels, the first is shown in grey.
    """
    return image[..., :3] if image.shape[-1] >= 3 else np.repeat(image[..., :1], 3, axis=-1)


def colorize(labels: UInt8[np.ndarray, "h w"], label_set: LabelSet) -> UInt8[np.ndarray, "h w 3"]:
    """Return train ids as an RGB image in the label set's colours. Ignored pixels are black."""
    return label_set.palette()[labels]


def overlay(
    image: UInt8[np.ndarray, "h w c"], labels: UInt8[np.ndarray, "h w"], label_set: LabelSet, opacity: float = 0.5
) -> UInt8[np.ndarray, "h w 3"]:
    """Return the image, as shown by `to_rgb`, blended with its label colours."""
    image = to_rgb(image)
    mixed = np.empty_like(image)
    # Blend 256 rows at a time, because a floating-point copy of a large image would take several times as much memory.
    for top in range(0, len(image), 256):
        rows = slice(top, top + 256)
        colors = colorize(labels[rows], label_set).astype(np.float32)
        np.round((1 - opacity) * image[rows].astype(np.float32) + opacity * colors, out=colors)
        mixed[rows] = colors
    return mixed


def draw_comparison(
    image: UInt8[np.ndarray, "h w c"],
    label: UInt8[np.ndarray, "h w"],
    prediction: UInt8[np.ndarray, "h w"],
    label_set: LabelSet,
) -> UInt8[np.ndarray, "h w3 3"]:
    """Return the image, the label and the prediction side by side."""
    return np.concatenate([to_rgb(image), colorize(label, label_set), colorize(prediction, label_set)], axis=1)


def name_results(images: Sequence[str]) -> list[str]:
    """Return a name for each image's results: its path without the suffix, or with it if another one has that name."""
    names = {image: str(PurePosixPath(image).with_suffix("")) for image in images}
    while True:  # next to a.jpg and a.png, which keep their suffixes, a.jpg.tif must keep its own, and so on
        count = Counter(names.values())
        clashes = {image: image for image, name in names.items() if count[name] > 1 and name != image}
        if not clashes:
            return [names[image] for image in images]
        names |= clashes


def write_pictures(
    output: str,
    name: str,
    label_set: LabelSet,
    prediction: UInt8[np.ndarray, "h w"],
    *,
    image: UInt8[np.ndarray, "h w c"] | None = None,
    confidence: UInt8[np.ndarray, "h w"] | None = None,
    opacity: float = 0.5,
) -> None:
    """Write an image's prediction as PNG files.

    The files are `<output>/train_ids/<name>.png` and `<output>/color/<name>.png`. If `image` is given, an overlay is
    written to `<output>/overlay` as well. If `confidence` is given, it is written to `<output>/confidence`.
    """
    drawn = {"train_ids": prediction, "color": colorize(prediction, label_set), "confidence": confidence}
    if image is not None:
        drawn["overlay"] = overlay(image, prediction, label_set, opacity)
    for kind, pixels in drawn.items():
        if pixels is not None:
            with write_atomically(epath.Path(output) / kind / f"{name}.png") as file:
                # Compression level 1 takes a third as long as the default level, and the files are only a tenth larger.
                Image.fromarray(pixels).save(file, "PNG", compress_level=1)


def remove_later_frames(output: str, video: str, count: int) -> None:
    """Remove the PNG files of frames from number `count` on, which a longer video of the same name left."""
    for kind in ("train_ids", "color", "confidence"):
        folder = epath.Path(output) / kind / video
        for path in folder.glob("*.png") if folder.is_dir() else ():
            if path.stem.isdecimal() and int(path.stem) >= count:
                path.unlink()
