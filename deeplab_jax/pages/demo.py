"""`deeplab-jax demo`: a local page to drop an image on and see what the network makes of it (Gradio)."""

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
from deeplab_jax.evaluation.pictures import overlay
from deeplab_jax.labels import LabelSet
from deeplab_jax.pages import html_page
from deeplab_jax.predict.inputs import read_image, read_size

LARGEST = 2**26  # pixels of a file that is decoded at all: it then takes 200 MB
LONGEST = 2**14  # side of such a file: a thin image cannot be reduced to the pixels that are wanted
SESSION_SECONDS = 3600  # after which uploads, and what was computed of them, are deleted


Segmentation = tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"]]  # an image as the network saw it, and train ids


def segment_file(segmenter: Segmenter, path: str, max_pixels: int) -> Segmentation:
    """Return the image of a file, reduced to `max_pixels` where it has more, and its labels.

    Raises:
      DataError: It cannot be read, or is larger than LARGEST or LONGEST.
    """
    file = pathlib.Path(path)
    height, width = read_size(file)
    if height * width > LARGEST or max(height, width) > LONGEST:
        raise DataError(
            f"{file.name} has {width}x{height} pixels: reduce it to {LARGEST / 1e6:.0f} million or fewer, {LONGEST} a side"
        )
    image = read_image(file)
    side = math.floor(max(height, width) * min(1.0, math.sqrt(max_pixels / (height * width))))
    image = html_page.reduced(image, side)
    return image, segmenter.predict(image.transpose(2, 0, 1)[None])[0]


def class_shares(labels: UInt8[np.ndarray, "h w"], label_set: LabelSet) -> str:
    """Return the classes of an image with their colours and shares of its pixels, largest first, as an HTML table."""
    counts = np.bincount(labels.ravel(), minlength=label_set.num_classes)
    order = [k for k in np.argsort(-counts, kind="stable").tolist() if counts[k]]
    return html_page.render("shares.html", labels=label_set, shares=[(k, counts[k] / labels.size) for k in order])


@contextlib.contextmanager
def upload_folder() -> Iterator[None]:
    """Keep what is uploaded and computed in a folder that is removed when the block ends, by SIGTERM too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with tempfile.TemporaryDirectory(prefix="deeplab-jax-demo-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # read by Gradio when the page is built
        yield


def build_page(segmenter: Segmenter, name: str, max_pixels: int) -> gradio.Blocks:
    """Return the page of a network called `name`: image in; overlay, opacity, legend with shares out.

    Moving the slider does not run the network again.
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
            # Reading the file, and saying why it cannot be read, is ours. (Gradio writes files beside a subclass's module.)
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
    """Print the address and serve until Ctrl-C.

    Args:
      page: what `build_page` returns.
      host: address to listen on.
      port: None for the first free one from 7860 on.
      max_mib: largest upload.

    Raises:
      ConfigError: Host and port cannot be listened on.
    """
    # Gradio tries a hundred ports, for minutes, where the host is not this machine's.
    try:
        with socket.create_server((host, port or 0), reuse_port=False):
            pass
    except OSError as error:
        raise ConfigError(f"`--host`, `--port` (={host!r}, {port}) cannot be used ({one_line(error)}): choose others") from None
    # Fonts of the system: the page needs no network.
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
        raise ConfigError(f"`--port` (={port}) cannot be used ({one_line(error)}): choose another") from None
    print(f"{url} until Ctrl-C", flush=True)
    page.block_thread()
