import math

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from deeplab_jax.config import DataConfig
from deeplab_jax.data.augmentation import (
    MAX_RETRIES,
    STREAMS,
    Window,
    augment,
    choose_window,
    cut_out,
    draw_photometric,
    draw_uniforms,
    flip,
    make_blank_row,
    make_sample_key,
    render_image,
    render_label,
    rotate,
)
from deeplab_jax.data.samples import OpenSample, make_pixel_reader, make_window_reader

MEAN = (123.675, 116.28, 103.53)
FILL = (124, 116, 104)  # rounded MEAN
KEY = make_sample_key(0, 7)
ALL_STEPS = DataConfig(
    crop_size=(40, 40), scale=(0.7, 2.0), cat_max_ratio=0.75, class_balanced=0.5, rotation=20.0, cutout=0.3, photometric=True
)


def open_arrays(image, label):
    image, label = tf.constant(image), tf.constant(label)
    return OpenSample(tf.shape(label), make_window_reader(image), make_pixel_reader(label), tf.zeros(8, tf.uint8))


def choose(label, key=KEY, **options):
    window = choose_window(open_arrays(label, label), key, DataConfig(**options))
    return tuple(part.numpy().tolist() for part in window)


def reference_window(size, key, crop_size, scale):
    """Compute the expected window with plain Python arithmetic."""
    u = draw_uniforms(key, "window").numpy()
    factor = scale[0] + u[0] * (scale[1] - scale[0])
    low, high, output_size = [], [], []
    for axis in (0, 1):
        wanted = max(int(np.round(crop_size[axis] / factor)), 1)
        extent = min(wanted, size[axis])
        fits = wanted <= size[axis]
        output_size.append(crop_size[axis] if fits else min(max(int(np.round(size[axis] * factor)), 1), crop_size[axis]))
        low.append(int(u[1 + axis] * (size[axis] - extent + 1)))
        high.append(low[-1] + extent)
    return low, high, output_size


def reference_render(image, label, window, crop_size):
    """Resize a window pixel by pixel in float64."""
    (y_low, x_low), (y_high, x_high), (rows, columns) = window
    image, label = image[y_low:y_high, x_low:x_high].astype(np.float64), label[y_low:y_high, x_low:x_high]
    out = np.broadcast_to(np.array(FILL, np.float64), (*crop_size, 3)).copy()
    out_label = np.full(crop_size, 255)
    for y in range(rows):
        for x in range(columns):
            centre = (y + 0.5) * label.shape[0] / rows, (x + 0.5) * label.shape[1] / columns
            out_label[y, x] = label[int(centre[0]), int(centre[1])]
            position = [np.clip(c - 0.5, 0, n - 1) for c, n in zip(centre, label.shape, strict=True)]
            (y0, fy), (x0, fx) = [(int(p), p - int(p)) for p in position]
            y1, x1 = min(y0 + 1, label.shape[0] - 1), min(x0 + 1, label.shape[1] - 1)
            top = image[y0, x0] * (1 - fx) + image[y0, x1] * fx
            bottom = image[y1, x0] * (1 - fx) + image[y1, x1] * fx
            out[y, x] = top * (1 - fy) + bottom * fy
    return out, out_label


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    crop_size=st.tuples(st.integers(1, 16), st.integers(1, 16)),
    scale=st.sampled_from([(0.5, 2.0), (1.0, 1.0), (0.25, 0.4), (3.0, 3.0)]),
)
def test_the_window_and_its_pixels_match_a_plain_reference(seed, size, crop_size, scale):
    rng = np.random.default_rng(seed)
    image, label = rng.integers(0, 256, (*size, 3)).astype(np.uint8), rng.integers(0, 19, size).astype(np.uint8)
    key = make_sample_key(seed, 3)
    window = choose(label, key, crop_size=crop_size, scale=scale)
    assert window == reference_window(size, key, crop_size, scale)
    expected_image, expected_label = reference_render(image, label, window, crop_size)
    window = Window(*map(tf.constant, window))
    np.testing.assert_array_equal(render_label(make_pixel_reader(tf.constant(label)), window, crop_size), expected_label)
    actual = render_image(make_window_reader(tf.constant(image)), window, crop_size, FILL).numpy()
    # Rounding to integers changes a value by up to 0.5. The extra 0.001 allows for float32 rounding errors.
    assert np.abs(actual - expected_image).max() <= 0.501


def test_windows_cover_all_positions_and_scales():
    label = np.zeros((6, 9), np.uint8)
    windows = [choose(label, make_sample_key(1, k), crop_size=(4, 4), scale=(1.0, 1.0)) for k in range(200)]
    assert {tuple(low) for low, _, _ in windows} == {(y, x) for y in range(3) for x in range(6)}
    windows = [choose(np.zeros((400, 400)), make_sample_key(1, k), crop_size=(100, 100), scale=(0.5, 2.0)) for k in range(100)]
    factors = np.array([100 / (high[0] - low[0]) for low, high, _ in windows])
    assert factors.min() < 0.55
    assert factors.max() > 1.9
    assert factors.mean() == pytest.approx(1.25, abs=0.17)  # the tolerance is 4 standard errors for 100 uniform draws


def draw_label(rng):
    """Return a 24x24 label made of 6x6 blocks, most of which are class 3."""
    return np.kron(np.where(rng.random((4, 4)) < 0.7, 3, rng.integers(0, 5, (4, 4))), np.ones((6, 6))).astype(np.uint8)


def largest_share(values):
    counts = np.bincount(values[values != 255], minlength=2)
    return counts.max() / counts.sum() if np.count_nonzero(counts) > 1 else 1.0


def test_windows_with_a_dominant_class_are_redrawn():
    redrawn = 0
    for k in range(60):
        label = draw_label(np.random.default_rng(k))
        label[:3] = 255
        key = make_sample_key(2, k)
        options = {"crop_size": (8, 8), "scale": (1.0, 1.0)}
        first = choose(label, key, **options)[0]
        places = [first, *(np.floor(draw_uniforms(key, "retry").numpy().reshape(MAX_RETRIES, 2) * 17).astype(int).tolist())]
        good = [place for place in places[:MAX_RETRIES] if largest_share(label[place[0] :, place[1] :][:8, :8]) < 0.75]
        expected = good[0] if good else places[MAX_RETRIES]
        assert choose(label, key, cat_max_ratio=0.75, **options)[0] == expected
        redrawn += expected != first
    assert redrawn > 20


def test_the_search_ends_when_no_window_is_accepted():
    for value in (4, 255):
        low, high, _ = choose(np.full((9, 9), value, np.uint8), crop_size=(3, 3), scale=(1.0, 1.0), cat_max_ratio=0.5)
        assert [b - a for a, b in zip(low, high, strict=True)] == [3, 3]


def test_balanced_windows_are_centred_on_all_classes_equally_often():
    label = np.zeros((40, 60), np.uint8)
    label[12, 33] = 1  # a single pixel
    label[30:32, 20:50] = 2
    label[0] = 255
    centre_classes = []
    for k in range(120):
        low, high, _ = choose(label, make_sample_key(3, k), crop_size=(9, 9), scale=(1.0, 1.0), class_balanced=1.0)
        middle = [a + 4 for a in low]
        if 4 <= middle[0] < 36 and 4 <= middle[1] < 56:
            centre_classes.append(int(label[tuple(middle)]))
        assert [b - a for a, b in zip(low, high, strict=True)] == [9, 9]
    counts = np.bincount(centre_classes, minlength=3)
    # Each class is expected 40 times. The bounds are 4 standard deviations away. Class 0 is not checked, because its pixels
    # near the image edge cannot be centred.
    assert all(20 <= n <= 61 for n in counts[1:])
    assert 255 not in centre_classes


def test_only_some_windows_are_balanced_and_the_others_stay_in_place():
    label = np.zeros((40, 60), np.uint8)
    label[20, 30] = 1
    plain = [choose(label, make_sample_key(4, k), crop_size=(5, 5), scale=(1.0, 1.0)) for k in range(100)]
    mixed = [choose(label, make_sample_key(4, k), crop_size=(5, 5), scale=(1.0, 1.0), class_balanced=0.3) for k in range(100)]
    # 30 balanced windows are expected. The bounds are 4 standard deviations away.
    assert 12 <= sum(a != b for a, b in zip(plain, mixed, strict=True)) <= 48


def test_balancing_changes_nothing_if_no_pixel_is_labelled():
    label = np.full((9, 9), 255, np.uint8)
    options = {"crop_size": (3, 3), "scale": (1.0, 1.0)}
    assert choose(label, class_balanced=1.0, **options) == choose(label, **options)


def test_random_numbers_depend_on_seed_sample_number_and_stream():
    table = np.array([[draw_uniforms(make_sample_key(seed, k), "window") for k in range(200)] for seed in (0, 1)])
    np.testing.assert_array_equal(
        table[1, 7], draw_uniforms(make_sample_key(tf.constant(1), tf.constant(7, tf.int64)), "window")
    )
    streams = np.concatenate([draw_uniforms(make_sample_key(2, 0), stream) for stream in STREAMS])
    numbers = np.concatenate([table.reshape(-1), streams])
    assert len(np.unique(numbers)) == numbers.size
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert table.mean((0, 1)) == pytest.approx(0.5, abs=0.06)  # the tolerance is 4 standard errors for 400 draws


def draw_blocks(seed=0, classes=5):
    """Return an image and its label, both made of 8x8 blocks. Each pixel's grey value is 50 times its class."""
    label = np.kron(np.random.default_rng(seed).integers(0, classes, (6, 8)), np.ones((8, 8))).astype(np.uint8)
    return np.repeat(label[..., None] * 50, 3, -1), label


def augment_arrays(image, label, key, data, fill):
    row = augment(open_arrays(image, label), key, data=data, fill=fill)
    return row["image"], row["label"]


def apply(step, image, label, u, amount, fill=FILL):
    row = step({"image": tf.constant(image), "label": tf.constant(label)}, u, amount, fill)
    return row["image"].numpy(), row["label"].numpy()


def test_image_and_label_stay_aligned_through_all_steps():
    image, label = draw_blocks()
    for k in range(20):
        a, b = map(np.array, augment_arrays(image, label, make_sample_key(0, k), ALL_STEPS, MEAN))
        a = a[..., 0].astype(int)
        # Bilinear interpolation mixes grey values at block borders. Everywhere else, a pixel's grey value must match its label.
        flat = (b != 255) & (np.diff(a, axis=0, prepend=-1) == 0) & (np.diff(a, axis=1, prepend=-1) == 0)
        assert flat.sum() > 150
        assert (a[flat] == b[flat] * 50).mean() > 0.97
        assert set(np.unique(b)) <= set(np.unique(label)) | {255}


def test_no_step_creates_new_label_values_or_changes_a_plain_colour():
    label = np.random.default_rng(0).choice(np.array([0, 3, 200, 255], np.uint8), (30, 50))
    image = np.full((30, 50, 3), 77, np.uint8)
    for k in range(10):
        a, b = map(np.array, augment_arrays(image, label, make_sample_key(5, k), ALL_STEPS, (77.0, 77.0, 77.0)))
        assert set(np.unique(b)) <= {0, 3, 200, 255}
        assert (a == 77).all()


@pytest.mark.slow
def test_eager_mode_and_a_dataset_give_identical_samples():
    image, label = map(tf.constant, draw_blocks())

    def sample(k):
        return augment_arrays(image, label, make_sample_key(9, k), ALL_STEPS, MEAN)

    for k, (a, b) in enumerate(tf.data.Dataset.range(6).map(sample)):
        eager_image, eager_label = sample(k)
        np.testing.assert_array_equal(a, eager_image)
        np.testing.assert_array_equal(b, eager_label)


def test_about_half_of_the_samples_are_mirrored():
    image, label = draw_blocks()
    mirrored = 0
    for k in range(60):
        u = draw_uniforms(make_sample_key(0, k), "flip")
        a, b = apply(flip, image, label, u, True)
        step = -1 if u[0] < 0.5 else 1
        np.testing.assert_array_equal(a, image[:, ::step])
        np.testing.assert_array_equal(b, label[:, ::step])
        mirrored += step == -1
    assert 15 <= mirrored <= 45  # expected 30, plus or minus 4 standard deviations


def reference_rotation(image, label, angle, fill):
    """Rotate an image and its label about the centre, one pixel at a time, in float64."""
    height, width = label.shape
    out, out_label = np.zeros((*label.shape, 3)), np.full(label.shape, 255)
    for y in range(height):
        for x in range(width):
            dx, dy = x - (width - 1) / 2, y - (height - 1) / 2
            sx = math.cos(angle) * dx - math.sin(angle) * dy + (width - 1) / 2
            sy = math.sin(angle) * dx + math.cos(angle) * dy + (height - 1) / 2
            nearest = math.floor(sy + 0.5), math.floor(sx + 0.5)
            if 0 <= nearest[0] < height and 0 <= nearest[1] < width:
                out_label[y, x] = label[nearest]
            for yy in (math.floor(sy), math.floor(sy) + 1):
                for xx in (math.floor(sx), math.floor(sx) + 1):
                    pixel = image[yy, xx] if 0 <= yy < height and 0 <= xx < width else np.array(fill)
                    out[y, x] += pixel * (1 - abs(sy - yy)) * (1 - abs(sx - xx))
    return out, out_label


@pytest.mark.parametrize("degrees", [10.0, 180.0])
def test_rotation_matches_a_plain_reference(degrees):
    rng = np.random.default_rng(0)
    image, label = rng.integers(0, 256, (13, 17, 3)).astype(np.uint8), rng.integers(0, 5, (13, 17)).astype(np.uint8)
    angles = []
    for k in range(6):
        u = draw_uniforms(make_sample_key(1, k), "rotation")
        angle = (2 * float(u[0]) - 1) * math.radians(degrees)
        a, b = apply(rotate, image, label, u, degrees)
        expected_image, expected_label = reference_rotation(image.astype(float), label, angle, FILL)
        # A float32 position near the midpoint between two pixels might round to either pixel.
        assert (b == expected_label).mean() > 0.98
        assert np.abs(a - expected_image).max() <= 0.55
        angles.append(abs(angle))
    assert max(angles) > math.radians(degrees) / 2


def test_cutout_blanks_one_rectangle_of_the_requested_size():
    image, label = np.full((20, 30, 3), 9, np.uint8), np.full((20, 30), 4, np.uint8)
    places = set()
    for k in range(40):
        u = draw_uniforms(make_sample_key(2, k), "cutout").numpy()
        a, b = apply(cut_out, image, label, u, 0.25, (1, 2, 3))
        hole = round(0.25 * 20), round(0.25 * 30)
        y, x = int(u[0] * (20 - hole[0] + 1)), int(u[1] * (30 - hole[1] + 1))
        expected = label.copy()
        expected[y : y + hole[0], x : x + hole[1]] = 255
        np.testing.assert_array_equal(b, expected)
        np.testing.assert_array_equal(a, np.where((expected == 255)[..., None], (1, 2, 3), image))
        places.add((y, x))
    assert len(places) > 20


def test_photometric_factors_have_the_same_ranges_as_in_mmsegmentation():
    table = np.array(
        [
            draw_photometric({}, draw_uniforms(make_sample_key(3, k), "photometric"), True, FILL)["photometric"]
            for k in range(400)
        ]
    )
    low, high = [-32, 0.5, 0.5, -36], [32, 1.5, 1.5, 36]
    for column, (a, b), neutral in zip(table.T, zip(low, high, strict=True), (0, 1, 1, 0), strict=False):
        drawn = column[column != neutral]
        assert 160 <= len(drawn) <= 240  # expected 200, plus or minus 4 standard deviations
        assert a <= drawn.min() < a + 0.1 * (b - a)
        assert b - 0.1 * (b - a) < drawn.max() <= b
    assert set(table[:, 4]) == {0.0, 1.0}
    assert make_blank_row(ALL_STEPS, MEAN)["photometric"].numpy().tolist() == [0, 1, 1, 0, 0]


def test_a_blank_row_equals_the_padding_around_an_image():
    data = DataConfig(crop_size=(2, 3), scale=(1.0, 1.0), flip=False)
    row = make_blank_row(data, MEAN)
    image, label = row["image"], row["label"]
    assert row.keys() == {"image", "label"}
    assert image.numpy().tolist() == [[[124, 116, 104]] * 3] * 2
    assert label.numpy().tolist() == [[255] * 3] * 2
    around, _ = augment_arrays(image[:1, :1], label[:1, :1], make_sample_key(0, 0), data, MEAN)
    np.testing.assert_array_equal(around, image)
    assert (image.dtype, label.dtype) == (tf.uint8, tf.uint8)


def test_a_new_stream_at_the_end_does_not_change_the_other_random_numbers(monkeypatch):
    before = [draw_uniforms(KEY, stream).numpy() for stream in STREAMS]
    monkeypatch.setitem(STREAMS, "new", 7)
    for stream, numbers in zip(STREAMS, before, strict=False):
        np.testing.assert_array_equal(draw_uniforms(KEY, stream), numbers)
