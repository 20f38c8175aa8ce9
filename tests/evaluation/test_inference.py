import jax
import jax.numpy as jnp
import numpy as np
from conftest import tiny_model

from deeplab_jax.config import MeshConfig
from deeplab_jax.evaluation import inference, pictures, report
from deeplab_jax.evaluation.evaluate import score
from deeplab_jax.labels import CITYSCAPES
from deeplab_jax.models import DeepLabV3
from deeplab_jax.sharding import make_mesh


def test_counts_do_not_depend_on_batches_padding_or_devices():
    model = DeepLabV3(tiny_model(), 5)
    variables = jax.jit(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), False))()
    compiled = inference.compile_predict_and_count(model)
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (3, 33, 40, 3), np.uint8), rng.integers(0, 5, (3, 33, 40)).astype(np.uint8)
    labels[0] = 255

    def count(rows, valid, mesh):
        batch = {"image": images[rows], "label": labels[rows], "valid": np.array(valid), "index": np.array(rows)}
        shown = []
        counts = score(compiled, variables, [batch], make_mesh(mesh), 5, lambda _, valid_rows, p: shown.append((valid_rows, p)))
        return counts, *shown[0]

    together, rows, predictions = count([0, 1, 2, 0], [True, True, True, False], MeshConfig(data=4))
    assert together.dtype == np.int64
    assert together.sum() == 2 * 33 * 40
    assert predictions.shape == (4, 33, 40)
    assert rows == [0, 1, 2]
    alone = sum(count([i], [True], MeshConfig(data=1))[0] for i in range(3))
    np.testing.assert_array_equal(together, alone)


def test_logits_and_labels_agree():
    model = DeepLabV3(tiny_model(), 5)
    image = jnp.asarray(np.random.default_rng(0).integers(0, 256, (1, 20, 31, 3), np.uint8))
    variables = jax.jit(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), False))()
    logits = inference.logits(variables, image, model=model)
    assert logits.shape == (1, 20, 31, 5)
    np.testing.assert_array_equal(inference.predict(variables, image, model=model), logits.argmax(-1))


def test_pictures():
    label = np.array([[0, 255]], np.uint8)
    image = np.full((1, 2, 3), 100, np.uint8)
    np.testing.assert_array_equal(pictures.colorize(label, CITYSCAPES), [[[128, 64, 128], [0, 0, 0]]])
    np.testing.assert_array_equal(pictures.overlay(image, label, CITYSCAPES), [[[114, 82, 114], [50, 50, 50]]])
    assert pictures.strip(image, label, label, CITYSCAPES).shape == (1, 6, 3)


def test_a_class_that_is_nowhere_is_null_and_no_part_of_the_mean():
    confusion = np.zeros((19, 19), np.int64)
    confusion[0, 0], confusion[1, 0] = 3, 1
    summary = report.summary(confusion, CITYSCAPES)
    assert summary["iou"]["road"] == 0.75
    assert summary["iou"]["sidewalk"] == 0.0
    assert summary["iou"]["sky"] is None
    assert summary["miou"] == 0.375
    assert report.table(confusion, CITYSCAPES).row_count == 21
