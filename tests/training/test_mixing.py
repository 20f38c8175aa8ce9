import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deeplab_jax.config import Config, DataConfig, MeshConfig
from deeplab_jax.labels import IGNORE, LabelSet
from deeplab_jax.runtime.mesh import batch_shardings, make_mesh
from deeplab_jax.training.mixing import find_classes, mix

NAMES = ("a", "b", "c", "d")
LABELS = LabelSet("plain", NAMES, tuple((k + 1, 0, 0) for k in range(4)))
PASTE_B = {"copy_paste": 1.0, "copy_paste_classes": ("b",)}
BOTH = {"class_mix": 0.5, "copy_paste": 0.5, "copy_paste_classes": ("b", "d")}


@functools.cache
def compile_mix(fields):
    config = Config(labels=LABELS, data=DataConfig(**dict(fields)))
    return jax.jit(functools.partial(mix, config=config))


def run(images, labels, valid=None, step=0, **fields):
    """Mix a batch. The step's key is derived as in `train_step`, with seed 0."""
    images, labels = np.array(images, np.uint8), np.array(labels, np.uint8)
    valid = np.ones(len(labels), bool) if valid is None else np.array(valid)
    key = jax.random.fold_in(jax.random.key(0), step)
    return tuple(np.asarray(x) for x in compile_mix(tuple(fields.items()))(images, labels, valid, key))


# Three images of 2x3 pixels with one channel, whose values name the image and the pixel.
IMAGES = np.array([[[1, 2, 3], [4, 5, 6]], [[11, 12, 13], [14, 15, 16]], [[21, 22, 23], [24, 25, 26]]])[..., None]
LABEL_MAPS = np.array([[[0, 1, 1], [255, 1, 0]], [[1, 1, 2], [2, 2, 255]], [[0, 0, 0], [0, 0, 3]]])


def test_copy_paste_pastes_the_listed_classes_of_the_previous_sample():
    images, labels = run(IMAGES, LABEL_MAPS, **PASTE_B)
    # The first sample receives from the last, which has no "b".
    assert labels.tolist() == [[[0, 1, 1], [255, 1, 0]], [[1, 1, 1], [2, 1, 255]], [[1, 1, 0], [0, 0, 3]]]
    expected = [[[1, 2, 3], [4, 5, 6]], [[11, 2, 3], [14, 5, 16]], [[11, 12, 23], [24, 25, 26]]]
    assert images[..., 0].tolist() == expected


def test_an_invalid_sample_neither_gives_nor_receives():
    all_b = np.full((3, 1, 2), 1)
    values = np.array([[[1, 2]], [[3, 4]], [[5, 6]]])[..., None]
    images, _ = run(values, all_b, [True, True, False], **PASTE_B)
    assert images[..., 0].tolist() == [[[1, 2]], [[1, 2]], [[5, 6]]]


def test_without_mixing_the_arrays_are_returned_as_they_are():
    images, labels = jnp.zeros((2, 2, 3, 3), jnp.uint8), jnp.zeros((2, 2, 3), jnp.uint8)
    mixed = mix(images, labels, jnp.ones(2, bool), jax.random.key(0), Config())
    assert mixed[0] is images
    assert mixed[1] is labels


@pytest.mark.parametrize(("classes", "given"), [([0], 0), ([0, 1], 1), ([0, 1, 3], 1), ([0, 1, 2, 3], 2)])
def test_class_mix_gives_half_of_the_classes_rounded_down(classes, given):
    labels = np.array([[[*classes, IGNORE, *classes, IGNORE]], np.full((1, 2 * len(classes) + 2), IGNORE)])
    for step in range(5):
        _, mixed = run(labels[..., None], labels, step=step, class_mix=1.0)
        received = set(mixed[1].ravel().tolist()) - {IGNORE}
        assert len(received) == given
        assert received <= set(classes)
        assert mixed[1].ravel().tolist() == [k if k in received else IGNORE for k in labels[0].ravel().tolist()]


def test_a_sample_can_receive_both_the_listed_classes_and_half_of_all():
    labels = np.tile(np.arange(4), (2, 1, 1))
    sizes = set()
    for step in range(8):
        images, _ = run(np.arange(8).reshape(2, 1, 4, 1), labels, step=step, **PASTE_B | {"class_mix": 1.0})
        received = np.flatnonzero(images[1, 0, :, 0] < 4)
        assert 1 in received
        sizes.add(len(received))
    assert sizes == {2, 3}  # "b" is one of the two, or comes in addition


def test_the_probabilities_are_as_set_and_classes_are_equally_likely():
    n = 2000
    labels = np.tile(np.array([[0, 1, 3]]), (n, 1, 1))  # ClassMix gives one of three classes
    images = np.broadcast_to(np.arange(n)[:, None, None, None] % 251, (*labels.shape, 1))
    is_pasted = run(images, labels, class_mix=0.3)[0][..., 0] != images[..., 0]
    # Four standard deviations of the mean of n Bernoulli variables.
    for observed, expected in ((is_pasted.any((1, 2)).mean(), 0.3), *((x, 0.1) for x in is_pasted[:, 0].mean(0))):
        assert observed == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / n))
    copied = (run(images, labels, **PASTE_B | {"copy_paste": 0.3})[0][..., 0] != images[..., 0])[:, 0]
    assert not copied[:, [0, 2]].any()
    assert copied[:, 1].mean() == pytest.approx(0.3, abs=4 * np.sqrt(0.3 * 0.7 / n))
    assert 0.2 < is_pasted[copied.any(1)].any((1, 2)).mean() < 0.4  # the two are independent


@settings(deadline=None, max_examples=40)
@given(
    labels=st.lists(st.lists(st.sampled_from([0, 1, 2, 3, IGNORE]), min_size=6, max_size=6), min_size=4, max_size=4),
    valid=st.lists(st.booleans(), min_size=4, max_size=4),
    step=st.integers(0, 2**31 - 1),
)
def test_every_pixel_and_its_label_come_from_the_same_sample(labels, valid, step):
    labels = np.array(labels, np.uint8).reshape(4, 2, 3)
    images = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 2, 3, 3)  # no two values are equal
    mixed_images, mixed_labels = run(images, labels, valid, step, **BOTH)
    for i in range(4):
        is_pasted = (mixed_images[i] != images[i]).any(-1)
        np.testing.assert_array_equal(mixed_images[i], np.where(is_pasted[..., None], images[i - 1], images[i]))
        np.testing.assert_array_equal(mixed_labels[i], np.where(is_pasted, labels[i - 1], labels[i]))
        given = set(labels[i - 1][is_pasted].tolist())
        # Classes are pasted as a whole.
        np.testing.assert_array_equal(is_pasted, np.isin(labels[i - 1], list(given)))
        assert not is_pasted.any() or (valid[i] and valid[i - 1])
        assert IGNORE not in given


@pytest.mark.parametrize(("data", "spatial"), [(4, 1), (2, 2), (1, 4)])
def test_the_mixed_batch_is_the_same_on_any_mesh_and_sends_one_sample_per_device(data, spatial):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (8, 8, 6, 3), np.uint8), rng.integers(0, 4, (8, 8, 6), np.uint8)
    expected = run(images, labels, step=5, **BOTH)
    shardings = batch_shardings(make_mesh(MeshConfig(data, spatial)), ("image", "label", "valid"))
    batch = [jax.device_put(x, s) for x, s in zip((images, labels, np.ones(8, bool)), shardings.values(), strict=True)]
    batch.append(jax.random.fold_in(jax.random.key(0), 5))
    compiled = compile_mix(tuple(BOTH.items())).lower(*batch).compile()
    assert "all-gather" not in compiled.as_text()
    assert ("collective-permute" in compiled.as_text()) == (data > 1)
    for name, actual, wanted in zip(("image", "label"), compiled(*batch), expected, strict=True):
        assert actual.sharding.is_equivalent_to(shardings[name], actual.ndim)  # rows stay split
        np.testing.assert_array_equal(actual, wanted)


def test_classes_are_found_at_the_edges_of_the_range():
    labels = np.full((2, 2, 3), IGNORE, np.uint8)
    labels[0, 0, 0], labels[1, 1, 2] = 0, 149
    assert [np.flatnonzero(row).tolist() for row in np.asarray(find_classes(jnp.array(labels), 150))] == [[0], [149]]
