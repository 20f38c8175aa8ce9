"""The devices that a program is compiled for. The fastest way to compute an operation depends on them."""

from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh


class Target(NamedTuple):
    """The devices that a program is compiled for.

    Attributes:
      platform: The platform, such as "cpu", "gpu" or "tpu".
      images: The number of images that each device processes at a time, or 0 if it is unknown.
      mesh: The mesh whose "data" axis the batch is split over, or None without a mesh.
    """

    platform: str
    images: int = 0
    mesh: Mesh | None = None


# A user context is part of JAX's cache keys, so programs traced for different targets do not share cache entries.
_TARGET = jax.make_user_context(None)


def compiling_for(platform: str, images: int = 0, mesh: Mesh | None = None) -> Any:
    """Return a context manager in which operations are traced for a `Target`.

    Enter the context inside the function that JAX traces.
    """
    return _TARGET(Target(platform, images, mesh))


def get_target() -> Target:
    """Return the target that `compiling_for` selects, or else JAX's default device."""
    device = jax.config.jax_default_device  # type: ignore[attr-defined, unused-ignore]
    return _TARGET.value or Target(getattr(device, "platform", device) or jax.default_backend())
