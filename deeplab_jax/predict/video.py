"""Read and write video frames with FFmpeg, through PyAV (the optional dependency `video`)."""

import contextlib
import fractions
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import UInt8
from PIL import Image

from deeplab_jax.errors import ConfigError, DataError, one_line
from deeplab_jax.files import advise_on_write_error, write_atomically

Frame = UInt8[np.ndarray, "h w 3"]


@contextlib.contextmanager
def open_video(path: pathlib.Path) -> Iterator[tuple[float, int, Iterator[Frame]]]:
    """Open a video and yield its frames per second, its frame count and an iterator over its frames.

    The frame count is 0 if the file does not state it. Frames are RGB, rotated as the video specifies.

    Raises:
      ConfigError: PyAV is not installed.
      DataError: The file is unreadable. The iterator can also raise this error.
    """
    av = require_av()
    try:
        container = av.open(str(path.absolute()))  # in a relative path, FFmpeg mistakes the part before a colon for a protocol
    except (av.FFmpegError, OSError) as error:
        raise DataError(f"{path} cannot be read ({one_line(error)}). Replace the file.") from None
    with container:
        if not container.streams.video:
            raise DataError(f"{path} does not contain a video stream. Give a video file.")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"

        def decode() -> Iterator[Frame]:
            try:
                shape = None
                for frame in container.decode(stream):
                    upright = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
                    if upright.shape != (shape := shape or upright.shape):
                        raise DataError(
                            f"{path} changes from {shape[1::-1]} to {upright.shape[1::-1]} pixels. "
                            "Split the video where its size changes."
                        )
                    yield upright
            except (av.FFmpegError, OSError) as error:
                raise DataError(f"{path} is truncated ({one_line(error)}). Replace the file.") from None

        yield float(stream.average_rate or 25), stream.frames, decode()


@contextlib.contextmanager
def write_video(path: pathlib.Path | epath.Path, size: tuple[int, int], fps: float) -> Iterator[Callable[[Frame], None]]:
    """Open an .mp4 video for writing, and yield a function that appends a frame of `size` (height, width).

    The file only appears at `path` once the block has ended without an error. If the height or width is odd, the last row or
    column is repeated, because H.264 stores colours at half resolution.

    Raises:
      ConfigError: `path` cannot be written.
    """
    av = require_av()
    height, width = size
    try:
        with write_atomically(epath.Path(path)) as file, av.open(file, "w", format="mp4") as container:
            stream: Any = container.add_stream("libx264", rate=fractions.Fraction(fps).limit_denominator(1001))
            stream.height, stream.width, stream.pix_fmt = height + height % 2, width + width % 2, "yuv420p"

            def add(frame: Frame) -> None:
                even = np.ascontiguousarray(np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), "edge"))
                container.mux(stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))

            yield add
            container.mux(stream.encode())
    except av.FFmpegError as error:
        raise ConfigError(f"Cannot write {path}: {one_line(error)}. {advise_on_write_error(error)}.") from None


def require_channels(channels: int) -> None:
    """Raise a ConfigError unless a network that reads images with this many channels can read video frames."""
    if channels not in (1, 3):
        raise ConfigError(
            f"Videos are grey or RGB, but this network reads {channels} channels (data.channels). Give images instead."
        )


def to_channels(frame: Frame, channels: int) -> UInt8[np.ndarray, "h w channels"]:
    """Return a frame as RGB if `channels` is 3, or as grey (ITU-R 601 luma, as for images) if it is 1."""
    return frame if channels == 3 else np.asarray(Image.fromarray(frame).convert("L"))[..., None]


def require_av() -> Any:
    """Return the PyAV module.

    Raises:
      ConfigError: PyAV is not installed.
    """
    try:
        import av
    except ImportError:
        raise ConfigError("Videos require the package PyAV. Run `pip install 'deeplab-jax[video]'` to install it.") from None
    return av
