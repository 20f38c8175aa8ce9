"""Photometric distortion on the device. `data/augmentation.py` draws the random factors on the host."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def distort(images: Float[Array, "n h w c"], factors: Float[Array, "n 5"]) -> Float[Array, "n h w c"]:
    """Change brightness, contrast, saturation and hue.

    This is mmsegmentation's PhotoMetricDistortion without the rounding to 8 bits. Brightness and contrast change in all
    channels. Saturation and hue need colours, so they change only in the first three channels, which are assumed to be R, G and
    B. Images with one or two channels have no colours.

    Args:
      images: Images with values from 0 to 255.
      factors: For each image, the brightness offset, the contrast factor, the HSV saturation factor, the hue offset in degrees,
        and a flag that is 1 to apply contrast before saturation and hue, or 0 to apply it after them. The
        factors (0, 1, 1, 0, 0) leave every bit of an image unchanged.

    Returns:
      The images. Their values are clipped to the range 0 to 255 after every operation.
    """
    brightness, contrast, saturation, hue, first = (factors[:, i, None, None, None] for i in range(5))
    images = jnp.clip(images + brightness, 0.0, 255.0)
    images = jnp.clip(images * jnp.where(first > 0, contrast, 1.0), 0.0, 255.0)
    if images.shape[-1] >= 3:
        colors, others = images[..., :3], images[..., 3:]
        is_plain = (saturation == 1.0) & (hue == 0.0)
        colors = jnp.where(is_plain, colors, _shift_hue_and_saturation(colors, saturation[..., 0], hue[..., 0]))
        images = jnp.concatenate([colors, others], -1) if others.size else colors
    return jnp.clip(images * jnp.where(first > 0, 1.0, contrast), 0.0, 255.0)


def describe_limits(channels: int) -> str:
    """Return which part of `distort` does not apply to images with this many channels, or "" if all of it applies."""
    if channels == 3:
        return ""
    where = "not changed" if channels < 3 else "changed only in the first three channels (R, G, B)"
    plural = "s" if channels > 1 else ""
    return f"data.photometric: saturation and hue are {where}, because the images have {channels} channel{plural}"


def _shift_hue_and_saturation(
    images: Float[Array, "n h w 3"], saturation: Float[Array, "n 1 1"], hue: Float[Array, "n 1 1"]
) -> Float[Array, "n h w 3"]:
    """Scale the HSV saturation, clipping it at 1, and shift the hue. The HSV value does not change."""
    red, green, blue = images[..., 0], images[..., 1], images[..., 2]
    value = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
    per_chroma = 1.0 / jnp.where(chroma > 0, chroma, 1.0)
    # The hue in sixths of the colour circle, starting at red. For grey pixels, the hue has no effect.
    sixths = jnp.where(
        value == red,
        (green - blue) * per_chroma,
        jnp.where(value == green, (blue - red) * per_chroma + 2.0, (red - green) * per_chroma + 4.0),
    )
    shifted = sixths + hue / 60.0
    chroma = jnp.minimum(chroma * saturation, value)

    def channel(offset: float) -> Float[Array, "n h w"]:
        position = shifted + offset
        position -= 6.0 * jnp.floor(position / 6.0)  # jnp.mod is not vectorised on CPUs
        return value - chroma * jnp.clip(jnp.minimum(position, 4.0 - position), 0.0, 1.0)

    return jnp.stack([channel(5.0), channel(3.0), channel(1.0)], axis=-1)
