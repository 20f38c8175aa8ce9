import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deeplab_jax.runtime.canvases import (
    MAX_GROWTH,
    Canvas,
    choose_canvases,
    choose_standard_canvases,
    describe_canvases,
    standard_canvas,
)

SIDES = st.integers(1, 3000)
COUNTS = st.dictionaries(st.tuples(SIDES, SIDES), st.integers(1, 500), min_size=1, max_size=40)


def test_images_of_one_size_have_no_padding():
    assert choose_canvases({(1023, 2047): 500}, compile_pixels=10**9) == {(1023, 2047): Canvas((1023, 2047), True)}
    assert describe_canvases({(1023, 2047): 500}, {(1023, 2047): Canvas((1023, 2047), True)}) == ""


def test_portraits_and_landscapes_do_not_share_a_canvas():
    counts = {(480, 640): 20, (640, 480): 20}
    assert choose_canvases(counts, compile_pixels=2 * 10**6) == {size: Canvas(size, True) for size in counts}


def test_few_images_share_a_canvas_if_compiling_takes_longer():
    counts = {(470, 640): 2, (640, 640): 2}  # the padding is 2 x 170 x 640 = 217,600 pixels
    assert set(choose_canvases(counts, compile_pixels=220_000).values()) == {Canvas((640, 640), False)}
    assert choose_canvases(counts, compile_pixels=200_000) == {size: Canvas(size, True) for size in counts}


@given(counts=COUNTS, compile_pixels=st.sampled_from([0, 2 * 10**6, 10**9]))
def test_canvases_hold_their_images_within_the_stated_bounds(counts, compile_pixels):
    canvases = choose_canvases(counts, compile_pixels=compile_pixels)
    assert canvases.keys() == counts.keys()
    largest = max((height + 31) // 32 * ((width + 31) // 32) * 32**2 for height, width in counts)
    for size, canvas in canvases.items():
        assert canvas.holds(size)
        assert canvas.is_exact == (list(canvases.values()).count(canvas) == 1)
        assert canvas.is_exact or not (canvas.size[0] % 32 or canvas.size[1] % 32)
        assert canvas.size[0] * canvas.size[1] <= MAX_GROWTH * largest


@given(sizes=st.lists(st.tuples(st.integers(200, 640), st.integers(300, 640)), min_size=1, max_size=200))
def test_sizes_within_a_factor_of_three_need_at_most_eight_programs(sizes):
    counts = {size: sizes.count(size) for size in sizes}
    assert len(set(choose_canvases(counts, compile_pixels=0).values())) <= 8
    assert len(set(choose_standard_canvases(counts, compile_pixels=10**9).values())) <= 8


@pytest.mark.slow
def test_ten_thousand_sizes_take_little_time():
    rng = np.random.default_rng(0)
    counts = {tuple(size): 1 for size in rng.integers(100, 4000, (10_000, 2)).tolist()}
    assert len(set(choose_canvases(counts, compile_pixels=0).values())) <= 12


def test_a_few_long_images_do_not_add_programs_for_the_others():
    rng = np.random.default_rng(0)
    counts = {tuple(size): 1 for size in rng.integers(256, 1504, (200, 2)).tolist()}
    canvases = choose_canvases(counts | {(900, 4000): 1, (1000, 3600): 1, (20, 9000): 1}, compile_pixels=0)
    assert len(set(canvases.values())) <= 8 + 3
    assert canvases[20, 9000].is_exact


@pytest.mark.parametrize(
    ("size", "canvas"),
    [
        ((1, 64), (64, 64)),
        ((65, 256), (128, 256)),
        ((257, 321), (320, 416)),
        ((417, 513), (512, 640)),
        ((1080, 1920), (1280, 2048)),
    ],
)
def test_standard_canvases_equal_values_computed_by_hand(size, canvas):
    assert standard_canvas(size) == standard_canvas(canvas) == Canvas(canvas, False)


def test_positions_on_canvases_fit_into_32_bits():
    assert standard_canvas((20, 9000)) == Canvas((20, 9000), True)
    assert choose_standard_canvases({(20, 9000): 1}, compile_pixels=10**9) == {(20, 9000): Canvas((20, 9000), True)}


def test_a_frequent_size_does_not_use_a_standard_canvas():
    counts = {(1080, 1920): 300, (700, 500): 1}
    assert choose_standard_canvases(counts, compile_pixels=2 * 10**6) == {
        (1080, 1920): Canvas((1080, 1920), True),
        (700, 500): Canvas((832, 512), False),
    }
