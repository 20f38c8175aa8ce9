"""Photometric distortion on the device. Which numbers it gets is drawn with the samples (`data/augment.py`)."""

import jax.numpy as jnp
from jaxtyping import Array, Float

NEUTRAL = (0.0, 1.0, 1.0, 0.0, 0.0)


def distort(images: Float[Array, "n h w 3"], factors: Float[Array, "n 5"]) -> Float[Array, "n h w 3"]:
    """Brightness, contrast, saturation and hue as in mmsegmentation's PhotoMetricDistortion, without its rounding to 8 bits.

    Args:
      images: RGB, 0 to 255.
      factors: brightness (added), contrast (times), saturation (times, of HSV), hue (degrees, added), and 1 where contrast
        comes before saturation and hue, 0 where it comes after. NEUTRAL ones change nothing, to the bit.

    Returns:
      RGB, 0 to 255: every operation ends inside that range.
    """
    brightness, contrast, saturation, hue, first = (factors[:, i, None, None, None] for i in range(5))
    images = jnp.clip(images + brightness, 0.0, 255.0)
    images = jnp.clip(images * jnp.where(first > 0, contrast, 1.0), 0.0, 255.0)
    is_plain = (saturation == 1.0) & (hue == 0.0)
    images = jnp.where(is_plain, images, _shift_hue_and_saturation(images, saturation[..., 0], hue[..., 0]))
    return jnp.clip(images * jnp.where(first > 0, 1.0, contrast), 0.0, 255.0)


def _shift_hue_and_saturation(
    images: Float[Array, "n h w 3"], saturation: Float[Array, "n 1 1"], hue: Float[Array, "n 1 1"]
) -> Float[Array, "n h w 3"]:
    """By way of HSV, whose value stays; saturation ends at 1."""
    red, green, blue = images[..., 0], images[..., 1], images[..., 2]
    value = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
    per_chroma = 1.0 / jnp.where(chroma > 0, chroma, 1.0)
    # In sixths of the circle, from red; what a grey pixel gets does not matter.
    sixths = jnp.where(
        value == red,
        (green - blue) * per_chroma,
        jnp.where(value == green, (blue - red) * per_chroma + 2.0, (red - green) * per_chroma + 4.0),
    )
    turned = sixths + hue / 60.0
    chroma = jnp.minimum(chroma * saturation, value)

    def channel(offset: float) -> Float[Array, "n h w"]:
        position = turned + offset
        position -= 6.0 * jnp.floor(position / 6.0)  # jnp.mod is not vectorised on a CPU
        return value - chroma * jnp.clip(jnp.minimum(position, 4.0 - position), 0.0, 1.0)

    return jnp.stack([channel(5.0), channel(3.0), channel(1.0)], axis=-1)
