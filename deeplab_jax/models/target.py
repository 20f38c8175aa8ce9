"""The platform that a program is compiled for. The fastest way to compute an operation depends on it."""

from typing import Any

import jax

# A user context is part of JAX's cache keys, so programs traced for different platforms do not share cache entries.
_TARGET = jax.make_user_context(None)


def compiling_for(platform: str) -> Any:
    """Return a context manager in which operations are traced for `platform`, such as "cpu", "gpu" or "tpu".

    Enter the context inside the function that JAX traces.
    """
    return _TARGET(platform)


def target_platform() -> str:
    """Return the platform that `compiling_for` selects, or else the platform of JAX's default device."""
    device = jax.config.jax_default_device  # type: ignore[attr-defined]
    return _TARGET.value or getattr(device, "platform", device) or jax.default_backend()
