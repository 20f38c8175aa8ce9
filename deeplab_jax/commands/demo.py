"""The `deeplab-jax demo` command."""

from typing import Annotated

import tyro

from deeplab_jax.errors import ConfigError


def demo(
    checkpoint: Annotated[str, tyro.conf.arg(metavar="DIR")],
    host: str = "127.0.0.1",
    port: int | None = None,
    max_mib: int = 20,
    max_pixels: int = 2**21,
) -> None:
    """Serve a web page that segments images you drop on it. Requires `pip install 'deeplab-jax[demo]'`.

    The page shows an overlay, a legend and the share of each class.

    Args:
      checkpoint: A run folder, RUN/best, RUN/latest, a step folder, or a folder written by `weights import`.
      host: The address to listen on. With 0.0.0.0, other machines can connect without a password.
      port: The port to listen on. The default is the first free port starting at 7860.
      max_mib: The maximum upload size in MiB.
      max_pixels: The maximum number of pixels per image. Larger images are downscaled.
    """
    for flag, value in (("--max-mib", max_mib), ("--max-pixels", max_pixels)):
        if value < 1:
            raise ConfigError(f"`{flag}` (={value}) cannot be used. Use 1 or more.")
    if port is not None and not 1 <= port <= 65535:
        raise ConfigError(f"`--port` (={port}) cannot be used. Use a number from 1 to 65535.")
    from deeplab_jax.api import load

    try:
        from deeplab_jax.pages.demo import build_page, serve, upload_folder
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"`deeplab-jax demo` requires the package {error.name}. Run `pip install 'deeplab-jax[demo]'` to install it."
        ) from None
    segmenter = load(checkpoint)
    with upload_folder():
        serve(build_page(segmenter, checkpoint, max_pixels), host=host, port=port, max_mib=max_mib)
