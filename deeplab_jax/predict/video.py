"""Read and write video frames with FFmpeg, through PyAV (the optional dependency `video`)."""

import contextlib
import dataclasses
import fractions
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import UInt8

from deeplab_jax.errors import ConfigError, DataError, one_line
from deeplab_jax.files import advise_on_write_error, write_atomically

Frame = UInt8[np.ndarray, "h w 3"]
ENCODER = "libx264"
BT_601 = 5  # the conversion from RGB that FFmpeg uses; in a large video that does not name it, players assume another one
TIME_BASE = fractions.Fraction(1, 90_000)  # seconds; MPEG's own unit, in which all usual frame rates are exact


@dataclasses.dataclass(slots=True)
class Video:
    """An open video.

    Attributes:
      fps: The average number of frames per second.
      count: The number of frames, or 0 if the file does not state it.
      pixel_aspect: The width of a pixel divided by its height. It is final once the first frame has been read.
      frames: The time of each frame in seconds, from the first one, and the frame in RGB, rotated as the video specifies.
      damaged: How many packets and decoded frames had errors so far. Frames of such packets are missing or look wrong.
    """

    fps: float
    count: int
    pixel_aspect: fractions.Fraction
    frames: Iterator[tuple[float, Frame]]
    damaged: int = 0


@contextlib.contextmanager
def open_video(path: pathlib.Path) -> Iterator[Video]:
    """Open a video.

    Raises:
      ConfigError: PyAV is not installed.
      DataError: The file is unreadable. The iterator over its frames can also raise this error.
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
        stream.thread_type = "SLICE"  # threads for frames can lose the last ones of a damaged video without an error
        pixel_aspect = fractions.Fraction(stream.sample_aspect_ratio or 1)  # from PyAV 19 on, the ratio has a type of its own
        video = Video(float(stream.average_rate or 25), stream.frames, pixel_aspect, iter(()))

        def decode() -> Iterator[Any]:
            try:
                for packet in container.demux(stream):
                    try:
                        decoded = packet.decode()
                    except av.error.InvalidDataError:
                        video.damaged += 1
                        continue
                    # FFmpeg covers up most errors: it repeats earlier frames where the data is missing, and sets a flag.
                    video.damaged += packet.is_corrupt + sum(frame.is_corrupt for frame in decoded)
                    yield from decoded
            except (av.FFmpegError, OSError) as error:
                raise DataError(f"{path} is truncated ({one_line(error)}). Replace the file.") from None

        def read() -> Iterator[tuple[float, Frame]]:
            shape, start, last = None, None, -1 / video.fps
            for number, frame in enumerate(decode()):
                if number == 0 and frame.rotation % 180:
                    video.pixel_aspect = 1 / pixel_aspect
                upright = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
                if upright.shape != (shape := shape or upright.shape):
                    raise DataError(
                        f"{path} changes from {shape[1::-1]} to {upright.shape[1::-1]} pixels. "
                        "Split the video where its size changes."
                    )
                time = number / video.fps if frame.time is None else frame.time
                if start is None or time - start < last:  # joined videos, as with `cat a.ts b.ts`, start again
                    start = time - last - 1 / video.fps
                last = time - start
                yield last, upright

        video.frames = read()
        yield video


@contextlib.contextmanager
def write_video(
    path: pathlib.Path | epath.Path, size: tuple[int, int], fps: float, pixel_aspect: fractions.Fraction = fractions.Fraction(1)
) -> Iterator[Callable[[float, Frame], None]]:
    """Open an .mp4 video for writing, and yield a function that appends a frame of `size` (height, width).

    The function takes the frame's time in seconds, and the frame. `fps` is the usual number of frames per second, and
    `pixel_aspect` is the width of a pixel divided by its height. The file only appears at `path` once the block has ended
    without an error. If the height or width is odd, the last row or column is repeated, because H.264 stores colours at half
    resolution.

    Raises:
      ConfigError: `path` cannot be written.
    """
    av = require_av()
    height, width = size
    try:
        with write_atomically(epath.Path(path)) as file, av.open(file, "w", format="mp4") as container:
            stream: Any = container.add_stream(ENCODER, rate=fractions.Fraction(fps).limit_denominator(1001))
            stream.height, stream.width, stream.pix_fmt = height + height % 2, width + width % 2, "yuv420p"
            stream.codec_context.time_base, stream.codec_context.sample_aspect_ratio = TIME_BASE, pixel_aspect
            stream.codec_context.colorspace = BT_601
            last = -1

            def add(time: float, frame: Frame) -> None:
                nonlocal last
                even = np.ascontiguousarray(np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), "edge"))
                picture = av.VideoFrame.from_ndarray(even, format="rgb24")
                picture.time_base, picture.pts = TIME_BASE, (last := max(last + 1, round(time / TIME_BASE)))
                container.mux(stream.encode(picture))

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


def require_av() -> Any:
    """Return the PyAV module.

    Raises:
      ConfigError: PyAV is not installed, or cannot write H.264.
    """
    try:
        import av
    except ImportError:
        raise ConfigError("Videos require the package PyAV. Run `pip install 'deeplab-jax[video]'` to install it.") from None
    if ENCODER not in av.codecs_available:
        raise ConfigError(
            f"Videos require FFmpeg's encoder {ENCODER}, which this PyAV lacks, as some packages of conda do. Run "
            "`pip install --force-reinstall av`."
        )
    return av
