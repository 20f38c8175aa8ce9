import dataclasses
import functools
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import random_variables, smallest_model
from rich.console import Console
from test_windows import CLASSES as FEW_CLASSES
from test_windows import naive_slide, network, noise

from deeplab_jax.api import Segmenter
from deeplab_jax.config import Config, EvalConfig, MeshConfig
from deeplab_jax.evaluation import inference, pictures, scores
from deeplab_jax.evaluation.evaluate import list_images, score
from deeplab_jax.evaluation.metrics import add_totals, empty_totals
from deeplab_jax.evaluation.views import average_views, scaled_size
from deeplab_jax.evaluation.windows import default_stride, slide
from deeplab_jax.labels import CITYSCAPES
from deeplab_jax.models import normalize
from deeplab_jax.runtime.mesh import local_rows, make_mesh, place, replicated_sharding

# The image size, 36x50, is not a multiple of the window size at any scale. The window is larger than the smaller view.
PROTOCOL = EvalConfig(batch_size=4, window=(24, 32), scales=(0.5, 1.5), flip=True)
CONFIG = Config(model=smallest_model(), eval=PROTOCOL)
CLASSES = CITYSCAPES.num_classes


@pytest.fixture(scope="module")
def variables():
    """Return random weights whose logits differ by about 1, so averaging logits differs from averaging probabilities."""
    return random_variables(inference.evaluation_model(CONFIG))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (4, 36, 50, 3), np.uint8)


@pytest.fixture(scope="module")
def compiled_logits():
    model = inference.evaluation_model(CONFIG)
    return jax.jit(lambda variables, images: inference.logits(variables, images, model=model, protocol=PROTOCOL))


def assert_equal_totals(totals, expected):
    """Compare totals: counts exactly, and float32 sums, whose order may differ, to 1e-5."""
    for x, y in zip(jax.tree.leaves(totals), jax.tree.leaves(expected), strict=True):
        assert np.asarray(x).any()
        np.testing.assert_allclose(x, y, rtol=1e-5 if x.dtype == np.float64 else 0)


@pytest.mark.slow
def test_counts_do_not_depend_on_batch_size_padding_or_devices(variables, images):
    labels = np.random.default_rng(1).integers(0, CLASSES, (3, 36, 50)).astype(np.uint8)
    labels[0] = 255

    def count(rows, valid, mesh):
        batch = {"image": images[rows], "label": labels[rows], "valid": np.array(valid), "index": np.array(rows)}
        shown = []

        def show(_, valid_rows, predictions):
            shown.append((valid_rows, predictions))

        evaluator = inference.Evaluator(CONFIG, make_mesh(mesh))
        return score(evaluator, variables, [batch], show), *shown[0]

    totals, rows, predictions = count([0, 1, 2, 0], [True, True, True, False], MeshConfig(data=4))
    assert totals.confusion.sum() == 2 * 36 * 50
    assert totals.images == 2
    assert predictions.shape == (4, 36, 50)
    assert rows == [0, 1, 2]
    one_by_one = [count([i], [True], MeshConfig(data=1))[0] for i in range(3)]
    assert_equal_totals(totals, functools.reduce(add_totals, one_by_one))


@pytest.mark.parametrize(
    ("mesh", "flip"),
    [(MeshConfig(data=1, spatial=4), False), (MeshConfig(data=2, spatial=2), False), (MeshConfig(spatial=2), True)],
)
def test_rows_are_split_over_devices_at_an_odd_height(variables, mesh, flip):
    rng = np.random.default_rng(2)
    batch = {
        "image": rng.integers(0, 256, (2, 37, 50, 3), np.uint8),
        "label": rng.integers(0, CLASSES, (2, 37, 50)).astype(np.uint8),
        "valid": np.ones(2, bool),
    }

    def evaluate(mesh):
        evaluator = inference.Evaluator(dataclasses.replace(CONFIG, eval=EvalConfig(flip=flip)), make_mesh(mesh))
        assert evaluator.row_unit
        shown = []
        counts = score(evaluator, variables, [batch], lambda _, __, predictions: shown.append(local_rows(predictions)))
        return counts, shown[0]

    (totals, predictions), (expected_totals, expected) = evaluate(mesh), evaluate(MeshConfig(data=1))
    np.testing.assert_array_equal(predictions, expected)
    assert_equal_totals(totals, expected_totals)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [MeshConfig(data=2), MeshConfig(data=1, spatial=4), MeshConfig(data=2, spatial=2)])
def test_images_of_different_sizes_are_evaluated_on_every_mesh(variables, mesh):
    rng, sizes = np.random.default_rng(3), [(64, 37), (21, 64)]
    labels = np.full((2, 64, 64), 255, np.uint8)
    for label, (height, width) in zip(labels, sizes, strict=True):
        label[:height, :width] = rng.integers(0, CLASSES, (height, width))
    images = rng.integers(0, 256, (2, 64, 64, 3), np.uint8)
    batch = {"image": images, "label": labels, "valid": np.ones(2, bool), "index": np.arange(2)}

    def evaluate(batch, mesh):
        evaluator = inference.Evaluator(dataclasses.replace(CONFIG, eval=EvalConfig()), make_mesh(mesh))
        shown = []
        totals = score(
            evaluator, variables, [batch], lambda *arguments: shown.extend(x.prediction for x in list_images(*arguments))
        )
        return totals, shown

    totals, predictions = evaluate(batch | {"size": np.array(sizes, np.int32)}, mesh)
    added = empty_totals(CLASSES)
    for i, (height, width) in enumerate(sizes):
        alone = {name: x[i : i + 1, :height, :width] if x.ndim > 1 else x[i : i + 1] for name, x in batch.items()}
        expected, (prediction,) = evaluate(alone, MeshConfig(data=1))
        np.testing.assert_array_equal(predictions[i], prediction)
        added = add_totals(added, expected)
    assert_equal_totals(totals, added)


@pytest.mark.parametrize("mesh", [MeshConfig(data=4), MeshConfig(spatial=2)])
def test_logits_with_windows_and_views_do_not_depend_on_the_devices(variables, images, compiled_logits, mesh):
    mesh = make_mesh(mesh)
    batch = place({"image": images, "valid": np.ones(4, bool)}, mesh, 0)
    on_mesh = compiled_logits(jax.device_put(variables, replicated_sharding(mesh)), batch["image"])
    np.testing.assert_allclose(on_mesh, compiled_logits(variables, images), rtol=1e-4, atol=1e-4)
    assert on_mesh.addressable_shards[0].data.shape[0] == 4 // mesh.shape["data"]


def test_windows_are_applied_within_each_view(variables, images, compiled_logits):
    model = inference.evaluation_model(CONFIG)
    full_logits = jax.jit(lambda images: inference.logits(variables, images, model=model, protocol=EvalConfig()))
    # `logits` normalises its input, but the views are already normalised, so undo that before each call.
    mean, std = (np.asarray(values, np.float32)[None, None, None] for values in (CONFIG.model.mean, CONFIG.model.std))
    views = average_views(
        lambda view, _: slide(lambda x, _: full_logits(x * std + mean), view, None, CLASSES, window=(24, 32), stride=(16, 21)),
        normalize(images, CONFIG.model.mean, CONFIG.model.std),
        None,
        CLASSES,
        scales=(0.5, 1.5),
        flip=True,
    )
    np.testing.assert_allclose(compiled_logits(variables, images), views, rtol=1e-3, atol=1e-3)


def test_a_segmenter_uses_the_full_protocol(variables, images, compiled_logits):
    segmenter = Segmenter(CONFIG, variables)
    logits = segmenter.logits(images.transpose(0, 3, 1, 2))
    np.testing.assert_allclose(logits, compiled_logits(variables, images).transpose(0, 3, 1, 2), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(segmenter.predict(images.transpose(0, 3, 1, 2)), logits.argmax(1))
    plain = dataclasses.replace(segmenter, config=Config(model=CONFIG.model)).logits(images.transpose(0, 3, 1, 2))
    assert np.abs(plain - logits).max() > 0.1


def test_colours_and_overlays_are_drawn():
    label = np.array([[0, 255]], np.uint8)
    image = np.full((1, 2, 3), 100, np.uint8)
    np.testing.assert_array_equal(pictures.colorize(label, CITYSCAPES), [[[128, 64, 128], [0, 0, 0]]])
    np.testing.assert_array_equal(pictures.overlay(image, label, CITYSCAPES), [[[114, 82, 114], [50, 50, 50]]])
    assert pictures.draw_comparison(image, label, label, CITYSCAPES).shape == (1, 6, 3)


def test_an_absent_class_is_null_and_not_part_of_the_mean():
    confusion = np.zeros((19, 19), np.int64)
    confusion[0, 0], confusion[1, 0] = 3, 1
    totals = empty_totals(19)._replace(confusion=confusion, loss=np.float64(2))
    summary = scores.summary(totals, CITYSCAPES)
    assert summary["loss"] == 0.5
    assert [summary["iou"][name] for name in ("road", "sidewalk", "sky")] == [0.75, 0.0, None]
    assert [summary["precision"][name] for name in ("road", "sidewalk", "sky")] == [0.75, None, None]
    assert summary["miou"] == 0.375
    assert summary["image_miou"] is None
    classes, overall = scores.tables(totals, CITYSCAPES)
    assert [next(column.cells) for column in classes.columns] == ["road", "75.00", "75.00", "100.00", "85.71", "-", "75.00"]
    values = list(overall.columns[1].cells)
    assert (values[0], values[-1]) == ("37.50 %", "0.5000")
    assert scores.summary(empty_totals(19), CITYSCAPES)["loss"] is None


def test_names_with_brackets_are_printed_as_they_are():
    labels = dataclasses.replace(CITYSCAPES, names=("lane [white]", "a [/b]", *CITYSCAPES.names[2:]))
    classes, _ = scores.tables(empty_totals(19), labels)
    console = Console(file=io.StringIO(), width=200)
    console.print(classes)
    assert all(name in console.file.getvalue() for name in labels.names)


def naive_resize(x, size):
    """Resize pixel by pixel, with half-pixel centres and repeated edges."""
    (h, w), out = x.shape[1:3], np.zeros((x.shape[0], *size, x.shape[3]))
    for i in range(size[0]):
        for j in range(size[1]):
            y = min(max((i + 0.5) * h / size[0] - 0.5, 0), h - 1)
            z = min(max((j + 0.5) * w / size[1] - 0.5, 0), w - 1)
            top, left = int(y), int(z)
            bottom, right = min(top + 1, h - 1), min(left + 1, w - 1)
            above = x[:, top, left] * (1 - z + left) + x[:, top, right] * (z - left)
            below = x[:, bottom, left] * (1 - z + left) + x[:, bottom, right] * (z - left)
            out[:, i, j] = above * (1 - y + top) + below * (y - top)
    return out


def softmax(x):
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


@pytest.mark.parametrize(
    ("scales", "flip", "window"),
    [((0.5, 1.0, 1.5), True, None), ((0.5, 1.5), False, (5, 7)), ((1,), True, (5, 7)), ((0.01, 1.0), True, None)],
)
def test_the_probabilities_of_several_views_are_averaged(scales, flip, window):
    images = noise(1, 9, 13, 2)
    apply_network = (
        functools.partial(slide, network, num_classes=FEW_CLASSES, window=window, stride=(0, 0)) if window else network
    )
    run = jax.jit(lambda images: average_views(apply_network, images, None, FEW_CLASSES, scales=scales, flip=flip))
    probabilities = []
    for scale in scales:
        size = (max(int(9 * scale + 0.5), 1), max(int(13 * scale + 0.5), 1))
        scaled = naive_resize(images, size).astype(np.float32)
        for step in (1, -1)[: 1 + flip]:
            seen = naive_slide(scaled[:, :, ::step], window or size, default_stride(window or size))
            probabilities.append(softmax(naive_resize(seen[:, :, ::step], (9, 13))))
    np.testing.assert_allclose(softmax(np.asarray(run(images))), np.mean(probabilities, 0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.exp(run(images)).sum(-1), 1.0, rtol=1e-5)


@pytest.mark.parametrize(
    ("scales", "flip", "window"),
    [((0.5, 1.0, 1.5), True, None), ((0.7,), False, None), ((1.5, 0.5), True, (5, 7)), ((0.01, 1.0), False, None)],
)
def test_images_of_different_sizes_have_views_of_their_own(scales, flip, window):
    images, sizes = noise(3, 16, 24, 2), [(9, 13), (16, 24), (11, 4)]
    options = {"scales": scales, "flip": flip}

    def apply(images, sizes, unit):
        windows = functools.partial(slide, network, num_classes=FEW_CLASSES, window=window, stride=(0, 0), unit=unit)
        return average_views(windows if window else network, images, sizes, FEW_CLASSES, **options, unit=unit)

    on_canvas = jax.jit(lambda images, sizes: apply(images, (sizes[:, 0], sizes[:, 1]), 8))(images, jnp.array(sizes))
    apply_to_one = jax.jit(lambda image: apply(image, None, 1))
    for image, (height, width), logits in zip(images, sizes, on_canvas, strict=True):
        expected = apply_to_one(image[None, :height, :width])
        np.testing.assert_allclose(logits[None, :height, :width], expected, rtol=1e-5, atol=1e-5)


def test_a_single_view_keeps_its_logits():
    images = noise(1, 9, 13, 2)
    full = average_views(network, images, None, FEW_CLASSES, scales=(1.0,), flip=False)
    np.testing.assert_array_equal(full, network(images))
    half = average_views(network, images, None, FEW_CLASSES, scales=(0.5,), flip=False)
    seen = np.asarray(network(naive_resize(images, (5, 7)).astype(np.float32)))
    np.testing.assert_allclose(half, naive_resize(seen, (9, 13)), rtol=1e-5, atol=1e-5)


def test_a_probability_of_zero_has_a_finite_logarithm():
    logits = average_views(lambda images, _: images * 1e4, jnp.array([[[[1.0, 0.0]]]]), None, 2, scales=(1.0,), flip=True)
    assert jnp.isfinite(logits).all()
    np.testing.assert_allclose(jax.nn.softmax(logits), [[[[1, 0]]]], atol=1e-30)


def test_sizes_round_half_up_and_are_at_least_1():
    assert scaled_size((1024, 2049), 0.5) == (512, 1025)
    assert scaled_size((33, 35), 1.5) == (50, 53)
    assert scaled_size((3, 100), 0.1) == (1, 10)
