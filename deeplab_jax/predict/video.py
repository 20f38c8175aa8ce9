"""Frames of videos, in and out, through FFmpeg (PyAV, the extra `video`)."""

import contextlib
import fractions
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jaxtyping import UInt8

from deeplab_jax.errors import ConfigError, DataError, one_line

Frame = UInt8[np.ndarray, "h w 3"]


@contextlib.contextmanager
def open_video(path: pathlib.Path) -> Iterator[tuple[float, int, Iterator[Frame]]]:
    """Yield frames a second, the number of frames (0 if the file omits it), and the frames: RGB, turned as the video says.

    Raises:
      ConfigError: PyAV is not installed.
      DataError: The file cannot be read; also raised while frames are read.
    """
    av = require_av()
    try:
        container = av.open(str(path.absolute()))  # FFmpeg takes what is before a colon for a protocol
    except (av.FFmpegError, OSError) as error:
        raise DataError(f"{path} cannot be read ({one_line(error)}): replace it") from None
    with container:
        if not container.streams.video:
            raise DataError(f"{path} has no pictures: give a video")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"

        def decode() -> Iterator[Frame]:
            try:
                shape = None
                for frame in container.decode(stream):
                    turned = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
                    if turned.shape != (shape := shape or turned.shape):
                        raise DataError(f"{path} changes from {shape[1::-1]} to {turned.shape[1::-1]} pixels: cut it there")
                    yield turned
            except (av.FFmpegError, OSError) as error:
                raise DataError(f"{path} is truncated ({one_line(error)}): replace it") from None

        yield float(stream.average_rate or 25), stream.frames, decode()


@contextlib.contextmanager
def write_video(path: pathlib.Path, size: tuple[int, int], fps: float) -> Iterator[Callable[[Frame], None]]:
    """Yield a function that adds a frame of `size` (height, width); `path` (.mp4) appears when the block ends without an error.

    Sides are made even by the last row or column again: H.264's colours have half the resolution.

    Raises:
      ConfigError: `path` cannot be written.
    """
    av = require_av()
    beside = path.absolute().with_name(f".{path.stem}.{os.getpid()}.new.mp4")
    height, width = size
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(beside), "w") as container:
            stream: Any = container.add_stream("libx264", rate=fractions.Fraction(fps).limit_denominator(1001))
            stream.height, stream.width, stream.pix_fmt = height + height % 2, width + width % 2, "yuv420p"

            def add(frame: Frame) -> None:
                even = np.ascontiguousarray(np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), "edge"))
                container.mux(stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))

            yield add
            container.mux(stream.encode())
        beside.replace(path)
    except (av.FFmpegError, OSError) as error:
        raise ConfigError(f"{path} cannot be written ({one_line(error)}): fix this or choose another folder") from None
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


def require_av() -> Any:
    """Return PyAV.

    Raises:
      ConfigError: It is not installed.
    """
    try:
        import av
    except ImportError:
        raise ConfigError("videos need PyAV: pip install 'deeplab-jax[video]'") from None
    return av
