import copy
import pickle

import jax.numpy as jnp
import numpy as np
from conftest import random_variables, tiny_config

from deeplab_jax import api
from deeplab_jax.models import DeepLabV3


def test_images_can_be_any_kind_of_array_or_a_list(plain_convolutions):
    config = tiny_config()
    segmenter = api.Segmenter(config, random_variables(DeepLabV3(config.model, config.labels.num_classes)))
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 16, 32), np.uint8)
    expected = segmenter.predict(images)
    device = jnp.asarray(images)
    for same in (list(images), tuple(images), list(device), device, images.copy(order="F")):
        np.testing.assert_array_equal(segmenter.predict(same), expected)


def test_a_notebook_does_not_print_the_weights_of_a_segmenter():
    assert "array" not in repr(api.Segmenter(tiny_config(), {"params": {"kernel": np.ones(3)}}))


def test_a_segmenter_can_be_pickled_copied_and_hashed_after_its_use(plain_convolutions):
    config = tiny_config()
    segmenter = api.Segmenter(config, random_variables(DeepLabV3(config.model, config.labels.num_classes)))
    images = np.random.default_rng(0).integers(0, 256, (1, 3, 16, 32), np.uint8)
    expected = segmenter.predict(images)
    for same in (pickle.loads(pickle.dumps(segmenter)), copy.deepcopy(segmenter)):
        np.testing.assert_array_equal(same.predict(images), expected)
        assert len({segmenter, same, segmenter}) == 2
    assert len(repr(segmenter)) < 10_000  # without the weights


def test_results_can_be_changed(plain_convolutions):
    config = tiny_config()
    segmenter = api.Segmenter(config, random_variables(DeepLabV3(config.model, config.labels.num_classes)))
    for width in (32, 24):  # a program of its own, and a canvas
        images = np.zeros((1, 3, 16, width), np.uint8)
        for result in (segmenter.logits(images), segmenter.predict(images), *segmenter.predict_with_confidence(images)):
            result[:] = 1
            assert (result == 1).all()
