"""Count the values in a mask, and recognize values that come from blending, which belong to no class."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from etils import epath
from jaxtyping import Bool, Integer, Shaped
from PIL import Image, ImagePalette

from deeplab_jax.data.omissions import has_transparent_pixels
from deeplab_jax.labels import Color

PHOTOMETRIC = 262  # the TIFF tag that says whether 0 is white
# In masks drawn by hand, up to 3 % of the runs are ramps (see `Mask`), or 5 % after shrinking without interpolation.
# With interpolation, soft edges or JPEG compression, it is 15 % to 75 % (CamVid).
MAX_RAMPS = 0.1
MIN_RAMPS = 20  # with fewer ramps, their share is not reliable
# If this many values mostly occur in ramps, they come from blending. One or two could be thin objects.
MIN_BLENDED_VALUES = 3
# A value is thin if this share of its runs are ramps. After JPEG compression, it is 20 % to 50 % for many values.
MIN_THIN = 0.2
MANY_VALUES = 6
BLEND_CAUSES = (
    "Masks that were resized with interpolation, drawn with soft edges (anti-aliasing) or saved as JPEG look like this. "
    "Recreate them from the originals, without interpolation, as PNG."
)
THRESHOLD = " Masks of 0 and 255 with soft edges can be repaired with a threshold: values below 128 become 0, others 255."


@dataclasses.dataclass(frozen=True, slots=True)
class Mask:
    """What a survey keeps of one label file.

    A ramp is a run of one or two pixels whose value lies between the values on both sides. Blending of two values makes ramps,
    for example at soft edges. Masks drawn by hand have hardly any.

    Attributes:
      values: The pixel count for each value.
      runs: The number of runs of equal values, row by row, for each value.
      ramps: The number of ramps for each value that has some.
      mode: The file's Pillow mode, such as "L" or "P", or "" if the labels are not image files.
      palette: The palette colour of each value. Empty unless the file holds palette indices.
      is_transparent: Whether the values are colours, of which some are stored below transparent pixels.
      is_inverted: Whether the file is a TIFF in which 0 is white, so that Pillow inverted the stored values.
    """

    values: dict[int, int]
    runs: dict[int, int]
    ramps: dict[int, int]
    mode: str = ""
    palette: dict[int, Color] = dataclasses.field(default_factory=dict)
    is_transparent: bool = False
    is_inverted: bool = False


def describe_mask(values: Integer[np.ndarray, "h w"], path: str = "") -> Mask:
    """Return what a survey needs of a mask.

    Args:
      values: The ids or 24-bit colours.
      path: The label file, or "" if the labels are not image files.
    """
    flat = values.ravel()
    # Counting runs of equal values is much faster than counting pixels.
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    lengths, runs = np.diff(starts, append=len(flat)), flat[starts]
    distinct, where = (np.arange(256), runs) if runs.dtype == np.uint8 else np.unique(runs, return_inverse=True)
    pixels = _as_dict(distinct, np.bincount(where, weights=lengths, minlength=len(distinct)))
    counts = _as_dict(distinct, np.bincount(where, minlength=len(distinct)))
    ramps = _as_dict(distinct, np.bincount(where[1:-1][_find_ramps(runs, lengths)], minlength=len(distinct)))
    mask = Mask(pixels, counts, ramps)
    return _add_format(mask, path, is_color=flat.dtype == np.int32) if path else mask


def find_distinct(values: Integer[np.ndarray, "h w"]) -> tuple[int, ...]:
    """Return the distinct values in ascending order. Sorting only one value of each run is 10 times as fast as sorting all."""
    flat = values.ravel()
    is_last = np.append(flat[1:] != flat[:-1], True)
    return tuple(np.unique(flat[is_last]).tolist())


def find_thin_values(runs: Mapping[int, int], ramps: Mapping[int, int]) -> list[int]:
    """Return the values of thin lines that lie between other values, if masks have more of them than usual.

    `MIN_BLENDED_VALUES` or more of them come from blending. See `Mask` for `runs` and `ramps`.
    """
    if sum(ramps.values()) < max(MIN_RAMPS, MAX_RAMPS * sum(runs.values())):
        return []
    return sorted(value for value, count in ramps.items() if count >= MIN_THIN * runs[value])


def advise_on_unknown(mask: Mask, unknown: Collection[int], kind: str) -> str:
    """Return what to do about the values of a mask that the label set does not define.

    Args:
      mask: The mask.
      unknown: Its undefined values.
      kind: How the mask encodes classes: "labelIds", "labelTrainIds" or "color".
    """
    is_color = kind == "color"
    ramps, runs = (sum(counts.get(value, 0) for value in unknown) for counts in (mask.ramps, mask.runs))
    are_ramps = len(unknown) >= MIN_BLENDED_VALUES and 2 * ramps >= runs
    if are_ramps or len(find_thin_values(mask.runs, mask.ramps)) >= MIN_BLENDED_VALUES:
        return (
            "The mask is blended: thin lines have values between those on both sides, so they belong to no class. "
            f"{BLEND_CAUSES}{advise_threshold(sorted(mask.values, key=lambda value: -mask.values[value]), is_color)}"
        )
    if is_color and all(_is_grey(value) for value in mask.values):
        return (
            "All colours of the mask are shades of grey. If these are ids, set data.label_kind=labelIds "
            "(--label-kind labelIds). Otherwise, add the colours to the label set."
        )
    if kind == "labelTrainIds":
        return (
            "Train ids are the positions of the classes in the label set, counted from 0. Fix the file, add classes, or set "
            "data.label_kind=labelIds (--label-kind labelIds) if these are the ids of the label set."
        )
    ignored = "ignored_colors" if is_color else "ignored_ids"
    advice = f"add the values to the label set (to {ignored} if they have no class)."
    if len(unknown) >= MANY_VALUES:
        return f"So many values rarely are classes. {BLEND_CAUSES} If they are classes, {advice}"
    return f"Fix the file, or {advice}"


def _is_grey(color: int) -> bool:
    return color % 0x010101 == 0


def advise_threshold(frequent: Sequence[int], is_color: bool) -> str:
    """Return how to repair blended masks whose values are given in order of their frequency, or "" if they must be redrawn."""
    return "" if is_color or not {0, 255} <= set(frequent[:3]) else THRESHOLD


def format_value(value: int, is_color: bool) -> str:
    """Return an id as text, such as "7", or a 24-bit colour as its RGB values, such as "128,64,128"."""
    return ",".join(str(part) for part in value.to_bytes(3, "big")) if is_color else str(value)


def _as_dict(values: Integer[np.ndarray, " n"], counts: Shaped[np.ndarray, " n"]) -> dict[int, int]:
    """Return the counts that are not 0, by value."""
    present = np.flatnonzero(counts)
    return dict(zip(values[present].tolist(), counts[present].astype(np.int64).tolist(), strict=True))


def _find_ramps(runs: Integer[np.ndarray, " n"], lengths: Integer[np.ndarray, " n"]) -> Bool[np.ndarray, " n-2"]:
    """Return which runs, without the first and the last, are ramps, in all bands of a colour."""
    bands = [runs >> shift & 255 for shift in (16, 8, 0)] if runs.dtype == np.int32 else [runs]
    between = lengths[1:-1] <= 2
    for band in bands:
        before, here, after = band[:-2], band[1:-1], band[2:]
        between &= ((before <= here) & (here <= after)) | ((before >= here) & (here >= after))
    changes = (runs[:-2] != runs[1:-1]) & (runs[1:-1] != runs[2:])
    return between & changes


def _add_format(mask: Mask, path: str, *, is_color: bool) -> Mask:
    """Add what Pillow says about a label file: its mode, palette colours, transparency, and whether 0 is white."""
    try:
        with epath.Path(path).open("rb") as file, Image.open(file) as picture:
            if is_color:  # these are their own labels, so the palettes can differ
                return dataclasses.replace(mask, mode=picture.mode, is_transparent=has_transparent_pixels(picture))
            colors = _read_palette(picture.palette) if picture.mode == "P" and picture.palette else []
            palette = {value: colors[value] for value in mask.values if value < len(colors)}
            is_inverted = picture.mode in ("1", "L") and picture.format == "TIFF" and picture.getexif().get(PHOTOMETRIC) == 0
            return dataclasses.replace(mask, mode=picture.mode, palette=palette, is_inverted=is_inverted)
    except Image.UnidentifiedImageError:  # a NumPy array, or a TIFF that only tifffile can read
        return mask


def _read_palette(palette: ImagePalette.ImagePalette) -> list[Color]:
    """Return the colours of a palette, which TIFF stores by band and BMP as BGRX."""
    order, colors = palette.getdata()
    picture = Image.new("P", (1, 1))  # to load the palette into a file's own picture, its pixels would have to be decoded
    picture.putpalette(colors, order)
    flat = picture.getpalette("RGB") or []
    return list(zip(flat[::3], flat[1::3], flat[2::3], strict=True))
