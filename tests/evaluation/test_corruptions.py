import numpy as np
import pytest

from deeplab_jax.evaluation import corruptions
from deeplab_jax.evaluation.corruptions import CORRUPTIONS, corrupt

RANDOM = {"gaussian_noise", "shot_noise", "impulse_noise", "glass_blur", "motion_blur"}
RANDOM |= {"snow", "frost", "fog", "elastic_transform"}


@pytest.fixture(scope="module")
def image():
    """Return an image with a gradient to the right, stripes of 6 pixels, and a gradient downwards, one in each channel."""
    columns, rows = np.meshgrid(np.arange(64), np.arange(48))
    return np.stack([4 * columns, 200 * (columns // 6 % 2), 5 * rows], axis=2).astype(np.uint8)


def distance(x, y):
    return np.abs(x.astype(int) - y).mean()


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_depends_on_its_arguments_alone_and_grows_with_the_severity(name, image):
    before = image.copy()
    np.random.seed(0)  # noqa: NPY002
    first = [corrupt(image, name, severity, 0, "a.png") for severity in (1, 5)]
    np.random.seed(1)  # noqa: NPY002
    again = corrupt(image, name, 5, 0, "a.png")
    np.testing.assert_array_equal(first[1], again)
    np.testing.assert_array_equal(image, before)
    assert again.dtype == np.uint8
    assert distance(first[1], image) > distance(first[0], image) > 0
    for other in (corrupt(image, name, 5, 1, "a.png"), corrupt(image, name, 5, 0, "b.png")):
        assert np.array_equal(other, again) == (name not in RANDOM)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_any_size_works(name):
    rng = np.random.default_rng(0)
    for shape in ((1, 1, 3), (5, 3, 3), (33, 70, 3)):
        image = rng.integers(0, 256, shape, np.uint8)
        image.flags.writeable = False
        assert corrupt(image, name, 5, 0, "a.png").shape == shape


def test_noise_has_the_published_strength():
    gray, rng = np.full((200, 200, 3), 102, np.uint8), np.random.default_rng(0)  # 102 / 255 = 0.4
    tolerance = 0.01  # three standard errors of the standard deviation of 120,000 values are 0.006 of it
    noisy = corruptions.gaussian_noise(gray, 1, rng) / 255
    np.testing.assert_allclose(noisy.std(), 0.08, rtol=tolerance)
    shot = corruptions.shot_noise(gray, 1, rng) / 255
    np.testing.assert_allclose(shot.std(), np.sqrt(0.4 / 60), rtol=tolerance)
    impulses = corruptions.impulse_noise(gray, 5, rng)
    shares = [np.mean(impulses == value) for value in (0, 255, 102)]
    np.testing.assert_allclose(shares, [0.135, 0.135, 0.73], atol=0.004)  # four standard errors


def test_blurs_spread_a_point_as_published():
    point, rng = np.zeros((41, 41, 3), np.uint8), np.random.default_rng(0)
    point[20, 20] = 255
    disk = corruptions.defocus_blur(point, 1, rng)[..., 0]
    y, x = np.mgrid[-20:21, -20:21]
    np.testing.assert_array_equal(disk == 8, x**2 + y**2 <= 9)  # 29 pixels, each 255 / 29 = 8.8, truncated
    # Half a Gaussian from the point on, with standard deviation 3, at up to 45 degrees from the horizontal.
    line = corruptions.motion_blur(point, 1, rng)[..., 0]
    rows, columns = np.nonzero(line)
    weights = np.exp(-(np.arange(21) ** 2) / 18)
    assert line[20, 20] == int(255 * weights[0] / weights.sum())
    assert columns.max() == 20 and columns.min() < 16  # noqa: PT018
    assert np.all(np.abs(rows - 20) <= 20 - columns)


def test_zoom_averages_enlarged_centres():
    # A ramp enlarged by a factor around its centre is a ramp with a smaller slope.
    ramp = np.broadcast_to(np.arange(101.0)[None, :, None], (101, 101, 3))
    np.testing.assert_allclose(corruptions._zoom_in(ramp, 2.0)[0, :, 0], 25 + np.linspace(0, 50, 102))


def test_colours_change_as_published():
    image = np.array([[[0, 0, 0], [100, 50, 0], [250, 250, 250]]], np.uint8)
    rng = np.random.default_rng(0)
    # 127.5 is added to the value in HSV: gray for black, the same hue and saturation, and white at most. Truncated.
    brighter = corruptions.brightness(image, 5, rng)
    np.testing.assert_array_equal(brighter, [[[127] * 3, [227, 113, 0], [255] * 3]])
    # The means are 350 / 3, 100 and 250 / 3, and a twentieth of the difference from them is left.
    expected = 0.05 * image + 0.95 * np.array([350 / 3, 100, 250 / 3])
    np.testing.assert_array_equal(corruptions.contrast(image, 5, rng), np.floor(expected))


def test_pixelate_averages_blocks(image):
    # At severity 5, each pixel is the mean of 4x4 pixels.
    blocks = image.reshape(12, 4, 16, 4, 3).mean((1, 3))
    expected = blocks.repeat(4, 0).repeat(4, 1)
    np.testing.assert_allclose(corruptions.pixelate(image, 5, np.random.default_rng(0)), expected, atol=0.5)  # rounding


def test_fog_over_a_white_image_is_from_a_quarter_of_white_to_white():
    # White becomes (1 + 3 * clouds) / 4 at severity 5, and clouds are from 0 to 1.
    foggy = corruptions.fog(np.full((64, 64, 3), 255, np.uint8), 5, np.random.default_rng(0))
    assert foggy.min() == 63  # 255 / 4
    assert foggy.max() == 255
