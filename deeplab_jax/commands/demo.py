"""`deeplab-jax demo`."""

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
    """Serve a page to drop images on: overlay, legend, shares of the classes. Needs pip install 'deeplab-jax[demo]'.

    Args:
      checkpoint: a run's folder, RUN/best, RUN/checkpoints/N, or what `weights import` made.
      host: address to listen on; 0.0.0.0 lets other machines in, without a password.
      port: port to listen on. Default: the first free one from 7860 on.
      max_mib: largest upload in MiB.
      max_pixels: larger images are reduced to this many pixels.
    """
    for flag, value in (("--max-mib", max_mib), ("--max-pixels", max_pixels)):
        if value < 1:
            raise ConfigError(f"`{flag}` (={value}) must be 1 or more")
    if port is not None and not 1 <= port <= 65535:
        raise ConfigError(f"`--port` (={port}) must be 1 to 65535")
    from deeplab_jax.api import load

    try:
        from deeplab_jax.pages.demo import build_page, serve, upload_folder
    except ModuleNotFoundError as error:
        raise ConfigError(f"`deeplab-jax demo` needs {error.name}: pip install 'deeplab-jax[demo]'") from None
    segmenter = load(checkpoint)
    with upload_folder():
        serve(build_page(segmenter, checkpoint, max_pixels), host=host, port=port, max_mib=max_mib)
