"""The 15 corruptions of ImageNet-C (Hendrycks and Dietterich 2019, arXiv:1903.12261), for RGB images of any size.

The corruptions and their parameters are those of imagecorruptions 1.1.2, the authors' code adapted to images of any size, which
defines Cityscapes-C (Michaelis et al. 2019, arXiv:1907.07484). Blur radii and the like are in pixels and do not grow with the
image. `tests/parity/corruptions.py` compares both. Only the frost differs: theirs is cut out of photographs, ours is drawn.

Each corruption is a function of an image, a severity from 1 to 5, and a random generator. Those without random parts ignore the
generator.
"""

import hashlib
import io
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from numpy.random import Generator
from PIL import Image
from scipy import ndimage, signal

Pixels = UInt8[np.ndarray, "h w 3"]
Corruption = Callable[[Pixels, int, Generator], Pixels]

SEVERITIES = (1, 2, 3, 4, 5)
FROST_SIDE = 640  # pixels; about the size of the authors' photographs, which are enlarged for larger images


def corrupt(image: Pixels, name: str, severity: int, seed: int, key: str) -> Pixels:
    """Return a corrupted image. It depends on nothing but the arguments.

    Args:
      image: The image.
      name: A key of CORRUPTIONS.
      severity: One of SEVERITIES. Every severity has the same noise, but more of it.
      seed: A seed for the random parts.
      key: Sets this image's random parts apart from those of others, such as its file name.
    """
    digest = hashlib.sha256(json.dumps([seed, name, key]).encode()).digest()
    return CORRUPTIONS[name](image, severity, np.random.default_rng(int.from_bytes(digest)))


def gaussian_noise(image: Pixels, severity: int, rng: Generator) -> Pixels:
    """Add noise of equal strength everywhere, as in low light."""
    std = (0.08, 0.12, 0.18, 0.26, 0.38)[severity - 1]
    return _to_bytes(image / 255 + rng.normal(scale=std, size=image.shape))


def shot_noise(image: Pixels, severity: int, rng: Generator) -> Pixels:
    """Replace each value by a Poisson number of photons."""
    photons = (60, 25, 12, 5, 3)[severity - 1]
    return _to_bytes(rng.poisson(image / 255 * photons) / photons)


def impulse_noise(image: Pixels, severity: int, rng: Generator) -> Pixels:
    """Set a share of the values to 0 or 255."""
    share = (0.03, 0.06, 0.09, 0.17, 0.27)[severity - 1]
    draws = rng.random(image.shape)
    return np.where(draws < share, np.where(draws < share / 2, 0, 255), image).astype(np.uint8)


def defocus_blur(image: Pixels, severity: int, _: Generator) -> Pixels:
    """Blur with a disk."""
    radius, sigma = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))[severity - 1]
    side = np.arange(-max(radius, 8), max(radius, 8) + 1)
    disk = (side**2 + side[:, None] ** 2 <= radius**2).astype(np.float32)
    disk /= disk.sum()
    offsets = np.arange(-1, 2) if radius <= 8 else np.arange(-2, 3)
    smooth = np.exp(-(offsets**2) / (2 * sigma**2))
    for axis in (0, 1):
        disk = ndimage.correlate1d(disk, smooth / smooth.sum(), axis, mode="mirror")
    return _to_bytes(_convolve(_to_floats(image), disk, "reflect"))


def glass_blur(image: Pixels, severity: int, rng: Generator) -> Pixels:
    """Blur, replace pixels by neighbours, and blur again.

    The paper swaps neighbours, but the published code copies one over the other.
    """
    sigma, reach, rounds = ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))[severity - 1]
    height, width = image.shape[:2]
    rows, columns = np.arange(height - reach, reach, -1), np.arange(width - reach, reach, -1)
    pixels = rows[:, None] * width + columns
    sources = np.arange(height * width).tolist()
    for _ in range(rounds):
        dx, dy = np.moveaxis(rng.integers(-reach, reach, (*pixels.shape, 2)), -1, 0)
        # A pixel can be copied from one that has been replaced before, so this loop has an order. In lists, it is fast.
        for i, j in zip(pixels.ravel().tolist(), (pixels + dy * width + dx).ravel().tolist(), strict=True):
            sources[i] = sources[j]
    blurred = _to_bytes(_blur(_to_floats(image), sigma))
    return _to_bytes(_blur(_to_floats(blurred.reshape(-1, 3)[sources].reshape(image.shape)), sigma))


def motion_blur(image: Pixels, severity: int, rng: Generator) -> Pixels:
    """Blur along a line at a random angle of up to 45 degrees from the horizontal."""
    radius, sigma = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[severity - 1]
    return _to_bytes(_convolve(_to_floats(image), _make_line(radius, sigma, rng.uniform(-45, 45)), "edge"))


def zoom_blur(image: Pixels, severity: int, _: Generator) -> Pixels:
    """Average the image over zoom factors, as if the camera had moved forward."""
    stop, step = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))[severity - 1]
    factors = np.arange(1, stop, step)
    x = _to_floats(image)
    total = x.copy()
    for factor in factors:
        total += _zoom_in(x, factor)[: x.shape[0], : x.shape[1]]
    return _to_bytes(total / (len(factors) + 1))


def snow(image: Pixels, severity: int, rng: Generator) -> Pixels:
    """Whiten the image and add blurred flakes in two directions."""
    mean, std, zoom, threshold, radius, sigma, weight = (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    )[severity - 1]
    height, width = image.shape[:2]
    flakes = _zoom_in(rng.normal(mean, std, (height, width)), zoom)
    flakes = np.where(flakes < threshold, 0, np.minimum(flakes, 1))
    flakes = _convolve(flakes, _make_line(radius, sigma, rng.uniform(-135, -45)), "edge")[:height, :width]
    flakes = (np.round(flakes * 255) / 255)[..., None]
    x = _to_floats(image)
    gray = (x @ np.array([0.299, 0.587, 0.114], np.float32))[..., None]
    x = weight * x + (1 - weight) * np.maximum(x, 1.5 * gray + 0.5)
    return _to_bytes(x + flakes + np.rot90(flakes, 2))


def frost(image: Pixels, severity: int, rng: Generator) -> Pixels:
    """Mix the image with frost on a window pane. See `_draw_frost`."""
    image_weight, frost_weight = ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))[severity - 1]
    return _to_bytes(image_weight * _to_floats(image) + frost_weight * _draw_frost(image.shape[0], image.shape[1], rng))


def fog(image: Pixels, severity: int, rng: Generator) -> Pixels:
    """Add clouds."""
    thickness, decay = ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))[severity - 1]
    height, width = image.shape[:2]
    x = _to_floats(image)
    brightest = x.max()
    clouds = _draw_clouds(1 << (max(image.shape) - 1).bit_length(), decay, rng)[:height, :width, None]
    return _to_bytes((x + thickness * clouds) * (brightest / (brightest + thickness)))


def brightness(image: Pixels, severity: int, _: Generator) -> Pixels:
    """Raise the value in HSV."""
    x = _to_floats(image)
    value = x.max(axis=2, keepdims=True)
    raised = np.minimum(value + 0.1 * severity, 1)
    # With the same hue and saturation, RGB is proportional to the value. Black has no hue and becomes grey.
    return _to_bytes(np.where(value > 0, x / np.where(value > 0, value, 1), 1) * raised)


def contrast(image: Pixels, severity: int, _: Generator) -> Pixels:
    """Move each channel towards its mean."""
    share = (0.4, 0.3, 0.2, 0.1, 0.05)[severity - 1]
    x = image / 255
    mean = x.mean(axis=(0, 1), keepdims=True)
    return _to_bytes((x - mean) * share + mean)


def elastic_transform(image: Pixels, severity: int, rng: Generator) -> Pixels:
    """Move pixels by smooth random offsets. Labels stay as they are: at 1024x2048, most offsets are below four pixels."""
    strength = 250 * (0.05, 0.065, 0.085, 0.1, 0.12)[severity - 1]
    height, width = image.shape[:2]
    limit, sigma = 0.005 * height, (0.01 * height, 0.01 * width)
    dx, dy = (
        strength * ndimage.gaussian_filter(rng.uniform(-limit, limit, (height, width)), sigma, truncate=3) for _ in range(2)
    )
    positions = np.stack([np.arange(height)[:, None] + dy, np.arange(width) + dx])
    bands = [ndimage.map_coordinates(band, positions, order=1, mode="reflect") for band in np.moveaxis(_to_floats(image), 2, 0)]
    return _to_bytes(np.stack(bands, axis=2))


def pixelate(image: Pixels, severity: int, _: Generator) -> Pixels:
    """Shrink the image and enlarge its pixels."""
    scale = (0.6, 0.5, 0.4, 0.3, 0.25)[severity - 1]
    height, width = image.shape[:2]
    small = Image.fromarray(image).resize((max(1, int(width * scale)), max(1, int(height * scale))), Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), Image.Resampling.NEAREST))


def jpeg_compression(image: Pixels, severity: int, _: Generator) -> Pixels:
    """Compress the image as JPEG with a low quality."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=(25, 18, 15, 10, 7)[severity - 1])
    return np.asarray(Image.open(file))


# In the order of the paper. To add one, write a function and add a line.
CORRUPTIONS: dict[str, Corruption] = {
    "gaussian_noise": gaussian_noise,
    "shot_noise": shot_noise,
    "impulse_noise": impulse_noise,
    "defocus_blur": defocus_blur,
    "glass_blur": glass_blur,
    "motion_blur": motion_blur,
    "zoom_blur": zoom_blur,
    "snow": snow,
    "frost": frost,
    "fog": fog,
    "brightness": brightness,
    "contrast": contrast,
    "elastic_transform": elastic_transform,
    "pixelate": pixelate,
    "jpeg_compression": jpeg_compression,
}


def _to_floats(image: Pixels) -> Float[np.ndarray, "h w 3"]:
    return image.astype(np.float32) / 255


def _to_bytes(x: Float[np.ndarray, "h w 3"]) -> Pixels:
    return (np.clip(x, 0, 1) * 255).astype(np.uint8)  # truncated, as in the published code


def _blur(x: Float[np.ndarray, "h w 3"], sigma: float) -> Float[np.ndarray, "h w 3"]:
    return ndimage.gaussian_filter(x, (sigma, sigma, 0), mode="nearest")


def _convolve(x: Float[np.ndarray, "h w *c"], kernel: Float[np.ndarray, "a b"], mode: Any) -> Float[np.ndarray, "h w *c"]:
    """Convolve each channel with a kernel with an odd height and width. `mode` is how `np.pad` continues the image."""
    bands = (1,) * (x.ndim - 2)
    margins = [(side // 2, side // 2) for side in kernel.shape] + [(0, 0) for _ in bands]
    kernel = kernel.astype(x.dtype).reshape(*kernel.shape, *bands)
    return signal.fftconvolve(np.pad(x, margins, mode=mode), kernel, mode="valid", axes=(0, 1))


def _make_line(radius: int, sigma: float, degrees: float) -> Float[np.ndarray, "a b"]:
    """Return a kernel that is half of a Gaussian on a line that starts at the pixel, like ImageMagick's motion blur."""
    distances = np.arange(2 * radius + 1)
    weights = np.exp(-(distances**2) / (2 * sigma**2))
    center = 2 * radius
    kernel = np.zeros((2 * center + 1, 2 * center + 1))
    rows, columns = (
        center - np.ceil(distances * direction - 0.5).astype(int)
        for direction in (math.sin(math.radians(degrees)), math.cos(math.radians(degrees)))
    )
    np.add.at(kernel, (rows, columns), weights / weights.sum())
    return kernel


def _zoom_in(x: Float[np.ndarray, "h w *c"], factor: float) -> Float[np.ndarray, "h2 w2 *c"]:
    """Enlarge the centre of an image bilinearly to at least the size of the image, as `ndimage.zoom` does."""
    for axis in (0, 1):
        size = x.shape[axis]
        part = math.ceil(size / factor)
        positions = (size - part) // 2 + np.linspace(0, part - 1, round(part * factor))
        low = positions.astype(int)
        share = (positions - low).astype(x.dtype).reshape(-1, *[1] * (x.ndim - 1 - axis))
        below, above = x.take(low, axis), x.take(np.minimum(low + 1, size - 1), axis)
        x = below + (above - below) * share
    return x


def _draw_clouds(size: int, decay: float, rng: Generator) -> Float[np.ndarray, "size size"]:
    """Draw a plasma fractal from 0 to 1 with the diamond-square algorithm.

    Args:
      size: The side, a power of two.
      decay: How much the roughness decreases when the distance between the points is halved.
      rng: The random generator.
    """
    heights = np.zeros((size, size), np.float32)
    step, wobble = size, 100.0

    def displace(corner_sums: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
        return corner_sums / 4 + wobble * rng.uniform(-wobble, wobble, corner_sums.shape)

    while step >= 2:
        half = step // 2
        corners, centers = heights[::step, ::step], heights[half::step, half::step]
        pairs = corners + np.roll(corners, -1, 0)
        centers[:] = displace(pairs + np.roll(pairs, -1, 1))
        heights[::step, half::step] = displace(centers + np.roll(centers, 1, 0) + corners + np.roll(corners, -1, 1))
        heights[half::step, ::step] = displace(centers + np.roll(centers, 1, 1) + corners + np.roll(corners, -1, 0))
        step, wobble = half, wobble / decay
    heights -= heights.min()
    return heights / heights.max()


def _draw_frost(height: int, width: int, rng: Generator) -> Float[np.ndarray, "h w 3"]:
    """Draw needles of ice over clouds, in a bluish grey.

    The mean colour and the contrast vary from image to image as much as they do in the authors' photographs.
    """
    scale = min(1, FROST_SIDE / max(height, width))
    small = (math.ceil(height * scale), math.ceil(width * scale))
    needles = np.zeros(small)
    for degrees in rng.uniform(0, 360, 12):
        starts = (rng.random(small) < 0.003) * rng.random(small)
        needles = np.maximum(needles, _convolve(starts, _make_line(16, 14, degrees), "constant"))
    clouds = _draw_clouds(1 << max(1, (max(small) - 1).bit_length()), 1.8, rng)[: small[0], : small[1]]
    texture = _standardize(_standardize(needles) + _standardize(clouds))
    brightness, contrast = rng.uniform(0, 1), rng.uniform(0.08, 0.18)
    color = (1 - brightness) * np.array([0.31, 0.45, 0.53]) + brightness * np.array([0.79, 0.81, 0.84])
    large = Image.fromarray(texture.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    return np.clip(color + contrast * np.asarray(large)[..., None], 0, 1)


def _standardize(x: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    return (x - x.mean()) / max(x.std(), 1e-6)
