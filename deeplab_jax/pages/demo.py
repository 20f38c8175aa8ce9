"""Implement `deeplab-jax demo`, a local Gradio page for segmenting uploaded images."""

import contextlib
import math
import os
import pathlib
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import gradio
import numpy as np
from jaxtyping import UInt8
from markupsafe import escape

from deeplab_jax.api import Segmenter
from deeplab_jax.errors import ConfigError, DataError, DeeplabError, one_line
from deeplab_jax.evaluation import inference
from deeplab_jax.evaluation.pictures import overlay
from deeplab_jax.labels import LabelSet
from deeplab_jax.pages import html_page
from deeplab_jax.predict.inputs import read_image, read_size
from deeplab_jax.runtime.canvases import standard_canvas

# Larger uploads are rejected before decoding. A decoded image with this many pixels takes 200 MB of memory.
MAX_FILE_PIXELS = 2**26
# Uploads with a longer side are rejected, because an extremely elongated image cannot be scaled down to the pixel limit.
MAX_FILE_SIDE = 2**14
SESSION_SECONDS = 3600  # how long uploads and results are kept

# The image passed to the network, and the predicted train ids.
Segmentation = tuple[UInt8[np.ndarray, "h w c"], UInt8[np.ndarray, "h w"]]


def segment_file(segmenter: Segmenter, path: str, max_pixels: int) -> Segmentation:
    """Read an image file and segment it.

    Args:
      segmenter: The network.
      path: The image file.
      max_pixels: Images with more pixels are scaled down to about this many.

    Returns:
      The image passed to the network, and the predicted train ids.

    Raises:
      DataError: The file cannot be read, or exceeds MAX_FILE_PIXELS or MAX_FILE_SIDE.
    """
    file = pathlib.Path(path)
    height, width = read_size(file)
    if height * width > MAX_FILE_PIXELS or max(height, width) > MAX_FILE_SIDE:
        raise DataError(
            f"{file.name} has {width}x{height} pixels and is too large. Reduce it to at most "
            f"{MAX_FILE_PIXELS / 1e6:.0f} million pixels and {MAX_FILE_SIDE} pixels per side."
        )
    image = read_image(file, segmenter.config.data.channels, segmenter.config.data.value_range)
    side = math.floor(max(height, width) * min(1.0, math.sqrt(max_pixels / (height * width))))
    image = html_page.downscale(image, side)
    # A standard canvas for every image, because its program is likely to be in the compilation cache.
    return image, segmenter.run(inference.predict, [image], standard_canvas((image.shape[0], image.shape[1])))[0]


def class_shares(labels: UInt8[np.ndarray, "h w"], label_set: LabelSet) -> str:
    """Return an HTML table listing the classes in an image by decreasing pixel share, with their colours."""
    counts = np.bincount(labels.ravel(), minlength=label_set.num_classes)
    order = [k for k in np.argsort(-counts, kind="stable").tolist() if counts[k]]
    return html_page.render("shares.html", labels=label_set, shares=[(k, counts[k] / labels.size) for k in order])


@contextlib.contextmanager
def upload_folder() -> Iterator[None]:
    """Store uploads and results in a temporary folder that is deleted when the block ends or on SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with tempfile.TemporaryDirectory(prefix="deeplab-jax-demo-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # Gradio reads this variable when the page is built
        yield


def build_page(segmenter: Segmenter, name: str, max_pixels: int) -> gradio.Blocks:
    """Build a page that segments an uploaded image and shows the overlay, a legend and each class's share.

    Moving the opacity slider only re-blends the stored result. The network does not run again.

    Args:
      segmenter: The network.
      name: The network name, shown in the title.
      max_pixels: Images with more pixels are scaled down to about this many.
    """

    def segment(path: str | None, opacity: float) -> tuple[Any, str, Segmentation | None]:
        if path is None:
            return None, "", None
        try:
            result = segment_file(segmenter, path, max_pixels)
        except DeeplabError as error:
            message = str(error).replace(path, pathlib.Path(path).name)
            raise gradio.Error(message, print_exception=False) from None
        return overlay(*result, segmenter.label_set, opacity), class_shares(result[1], segmenter.label_set), result

    def blend(result: Segmentation | None, opacity: float) -> Any:
        return None if result is None else overlay(*result, segmenter.label_set, opacity)

    title = f"deeplab_jax: {name}"
    with gradio.Blocks(title=title, analytics_enabled=False, delete_cache=(SESSION_SECONDS, SESSION_SECONDS)) as page:
        gradio.HTML(f"<h2>{escape(title)}</h2>")
        result = gradio.State(time_to_live=SESSION_SECONDS)
        with gradio.Row():
            image: Any = gradio.Image(label="Image", type="filepath", sources=["upload", "clipboard"], elem_id="image")
            # Pass the file path through unread, because `segment` reads the file and has its own message for broken files.
            # Replace the method instead of subclassing `Image`, because Gradio would write files next to the subclass's module.
            image.preprocess = lambda payload: payload and payload.path
            shown = gradio.Image(
                label="Overlay", interactive=False, format="png", buttons=["download", "fullscreen"], elem_id="overlay"
            )
        opacity = gradio.Slider(0, 1, 0.5, step=0.05, label="Opacity", elem_id="opacity")
        classes = gradio.HTML(elem_id="classes", elem_classes="shares")
        image.change(segment, [image, opacity], [shown, classes, result], api_visibility="private")
        opacity.change(blend, [result, opacity], shown, show_progress="hidden", api_visibility="private")
    return page


def serve(page: gradio.Blocks, *, host: str, port: int | None, max_mib: int) -> None:
    """Print the page's address, and serve the page until Ctrl-C is pressed.

    Args:
      page: The page built by `build_page`.
      host: The address to listen on.
      port: The port to listen on. If None, use the first free port from 7860 upwards.
      max_mib: The maximum upload size, in MiB.

    Raises:
      ConfigError: The server cannot listen on this host and port.
    """
    # Check the address first. If `host` is not one of this machine's, Gradio would spend minutes trying a hundred ports.
    try:
        with socket.create_server((host, port or 0), reuse_port=False):
            pass
    except OSError as error:
        raise ConfigError(
            f"`--host`, `--port` (={host!r}, {port}) cannot be used ({one_line(error)}). Choose a different host or port."
        ) from None
    # Use system fonts. They need no download, so the page also works offline.
    theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    try:
        _, url, _ = page.launch(
            server_name=host,
            server_port=port,
            max_file_size=max_mib * 2**20,
            prevent_thread_lock=True,
            share=False,
            quiet=True,
            show_error=True,
            state_session_capacity=16,
            footer_links=[],
            enable_monitoring=False,
            theme=theme,
            css=html_page.render("demo.css"),
        )
    except OSError as error:
        raise ConfigError(f"`--port` (={port}) cannot be used ({one_line(error)}). Choose a different port.") from None
    print(f"{url} is ready. Press Ctrl-C to stop.", flush=True)
    page.block_thread()
