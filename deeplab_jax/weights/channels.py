"""Adapt the weights of an RGB network to images with a different number of channels."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from deeplab_jax.errors import ConfigError
from deeplab_jax.weights.convert import Variables
from deeplab_jax.weights.names import Path


def adapt_channels(variables: Variables, shapes: Mapping[Path, tuple[int, ...]], source: str) -> tuple[Variables, str]:
    """Adapt the kernels that read the image to a network with a different number of channels.

    Args:
      variables: The stored variables, by path.
      shapes: The shapes of the network's variables, by path.
      source: The weights' name, for the error message.

    Returns:
      The variables, and a line that says what was adapted. The line is empty if the number of channels is the same.

    Raises:
      ConfigError: The numbers of channels differ, and the weights are not for 3 channels.
    """
    kernels = {path: x for path, x in variables.items() if path[1] == "backbone" and path in shapes and x.ndim == 4}
    different = {path: x for path, x in kernels.items() if x.shape[2] != shapes[path][2]}
    if not different:
        return variables, ""
    (stored, channels), *_ = ((x.shape[2], shapes[path][2]) for path, x in different.items())
    if stored != 3:
        accepted = "3" if channels == 3 else f"3 or {channels}"
        raise ConfigError(
            f"`data.channels` (={channels}) is {stored} in {source}. "
            f"Set it to {stored}, or use weights for {accepted} channels."
        )
    adapted = {path: adapt_kernel(x, channels) for path, x in different.items()}
    how = "summed" if channels == 1 else f"repeated and multiplied by 3/{channels}"
    return variables | adapted, (
        f"the first convolution was adapted from 3 channels to {channels}: its R, G and B kernels were {how}"
    )


def adapt_kernel(kernel: Float[np.ndarray, "kh kw 3 k"], channels: int) -> Float[np.ndarray, "kh kw c k"]:
    """Return a kernel for images with `channels` channels, from a kernel for RGB images.

    One channel gets the sum of the R, G and B kernels. More channels get R, G, B, R, ..., multiplied by 3 / channels, which
    keeps the size of the sum over the channels. timm (`adapt_input_conv`) and segmentation_models.pytorch
    (`patch_first_conv`) do the same.
    """
    if channels == 1:
        return kernel.sum(2, keepdims=True)
    return (kernel[:, :, np.arange(channels) % 3] * (3 / channels)).astype(kernel.dtype)
