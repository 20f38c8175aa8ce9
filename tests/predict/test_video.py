import struct
from fractions import Fraction

import numpy as np
import pytest
from av.video.reformatter import Colorspace

from deeplab_jax.predict import video
from deeplab_jax.predict.inputs import find_inputs, is_video

GREEN = np.full((64, 96, 3), (20, 200, 30), np.uint8)


@pytest.mark.parametrize("transfer", [1, 9])  # that of BT.709, and one that FFmpeg cannot convert, which PyAV 17 refused
@pytest.mark.parametrize("colorspace", [Colorspace.ITU709, Colorspace.ITU601])
def test_frames_have_the_colours_that_the_video_specifies(tmp_path, colorspace, transfer):
    av = video.require_av()
    with av.open(tmp_path / "phone.mp4", "w") as container:
        stream = container.add_stream(video.ENCODER, rate=5)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        stream.codec_context.colorspace, stream.codec_context.color_trc = colorspace, transfer
        frame = av.VideoFrame.from_ndarray(GREEN, format="rgb24").reformat(format="yuv420p", dst_colorspace=colorspace)
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with video.open_video(tmp_path / "phone.mp4") as source:
        np.testing.assert_allclose(next(source.frames)[1].astype(int), GREEN, atol=3)


def test_a_written_video_specifies_its_colours(tmp_path):
    with video.write_video(tmp_path / "overlay.mp4", (64, 96), fps=5) as add:
        add(0.0, GREEN)
    with video.require_av().open(tmp_path / "overlay.mp4") as container:
        frame = next(container.decode(video=0))
    assert frame.colorspace == Colorspace.ITU601
    written = [int(np.asarray(plane)[0]) for plane in frame.planes]
    r, g, b = (GREEN[0, 0] / 255).tolist()
    luma = 0.299 * r + 0.587 * g + 0.114 * b  # BT.601
    expected = 16 + 219 * luma, 128 + 224 * (b - luma) / 1.772, 128 + 224 * (r - luma) / 1.402
    np.testing.assert_allclose(written, expected, atol=2)


def write_transport_stream(path):
    """Write a green video of 12 frames in the format of broadcasts and dashcams, at 25 frames per second."""
    av = video.require_av()
    with av.open(path, "w", format="mpegts") as container:
        stream = container.add_stream("mpeg2video", rate=25)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        for i in range(12):
            frame = av.VideoFrame.from_ndarray(GREEN, format="rgb24")
            frame.pts = i
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def test_videos_of_dashcams_and_camcorders_are_found_and_read(tmp_path):
    write_transport_stream(tmp_path / "00001.MTS")
    ((source,), _) = find_inputs([str(tmp_path)])
    assert is_video(source.path)
    assert source.video_name == "00001.MTS.mp4"
    with video.open_video(source.path) as opened:
        assert [frame.shape for _, frame in opened.frames] == 12 * [(64, 96, 3)]


def test_joined_videos_are_shown_one_after_the_other(tmp_path):
    write_transport_stream(tmp_path / "a.ts")
    (tmp_path / "joined.ts").write_bytes(2 * (tmp_path / "a.ts").read_bytes())  # as with `cat`
    with video.open_video(tmp_path / "joined.ts") as joined:
        assert [time for time, _ in joined.frames] == pytest.approx([i / 25 for i in range(24)], abs=1e-4)


def test_damage_that_ffmpeg_covers_up_is_counted(tmp_path):
    write_transport_stream(tmp_path / "drive.ts")
    data = (tmp_path / "drive.ts").read_bytes()
    middle = len(data) // 2 // 188 * 188  # a lost packet of the transport stream
    (tmp_path / "drive.ts").write_bytes(data[:middle] + data[middle + 188 :])
    with video.open_video(tmp_path / "drive.ts") as source:
        assert source.damaged == 0
        assert 0 < len(list(source.frames)) <= 12
        assert source.damaged > 0


@pytest.mark.parametrize(("matrix", "shape", "aspect"), [((1, 0, 0, 1), (64, 96), (4, 3)), ((0, 1, -1, 0), (96, 64), (3, 4))])
def test_pixels_keep_their_aspect(tmp_path, matrix, shape, aspect):
    with video.write_video(tmp_path / "hdv.mp4", (64, 96), 5, Fraction(4, 3)) as add:
        add(0.0, GREEN)
    upright, turned = (
        struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30) for a, b, c, d in ((1, 0, 0, 1), matrix)
    )
    movie, _, rest = (tmp_path / "hdv.mp4").read_bytes().rpartition(upright)  # that of the track; the movie has one, too
    (tmp_path / "hdv.mp4").write_bytes(movie + turned + rest)
    with video.open_video(tmp_path / "hdv.mp4") as source:
        assert next(source.frames)[1].shape == (*shape, 3)
        assert source.pixel_aspect == Fraction(*aspect)
