import jax
import numpy as np
import pytest

from deeplab_jax.config import MeshConfig
from deeplab_jax.errors import ConfigError
from deeplab_jax.runtime.mesh import check_batch, local_rows, make_mesh, place, prefetch


def test_a_mesh_takes_all_devices_or_the_requested_number():
    assert dict(make_mesh(MeshConfig()).shape) == {"data": 4, "spatial": 1}
    assert dict(make_mesh(MeshConfig(spatial=2)).shape) == {"data": 2, "spatial": 2}
    assert make_mesh(MeshConfig(data=1)).size == 1
    assert dict(make_mesh(MeshConfig(data=1, spatial=2), jax.devices()[:3]).shape) == {"data": 1, "spatial": 2}


@pytest.mark.parametrize(
    ("mesh", "message"),
    [(MeshConfig(data=4, spatial=2), "but the number of devices is 4"), (MeshConfig(spatial=3), "is not a divisor")],
)
def test_a_mesh_that_does_not_fit_the_devices_is_rejected(mesh, message):
    with pytest.raises(ConfigError, match=message):
        make_mesh(mesh)


def test_an_uneven_batch_size_is_rejected_with_the_nearest_even_ones():
    mesh = make_mesh(MeshConfig())
    check_batch(8, mesh, "data.batch_size")
    with pytest.raises(ConfigError, match=r"`data.batch_size` \(=6\) cannot be split evenly over 4 devices. Use 4 or 8"):
        check_batch(6, mesh, "data.batch_size")
    with pytest.raises(ConfigError, match="Use 4, or"):
        check_batch(3, mesh, "data.batch_size")
    with pytest.raises(ConfigError, match=r"4 devices x 3 micro-batches\. Use 12 or 24"):
        check_batch(16, mesh, "data.batch_size", micro_batches=3)


def numbered_batch(i, height=4):
    return {"image": np.full((4, height, 4, 3), i, np.uint8), "valid": np.ones(4, bool), "index": np.arange(4)}


def test_rows_are_split_over_the_devices_and_the_index_stays_on_the_host():
    placed = place(numbered_batch(1), make_mesh(MeshConfig(spatial=2)), 2)
    assert set(placed) == {"image", "valid"}
    assert placed["image"].addressable_shards[0].data.shape == (2, 2, 4, 3)
    whole = place(numbered_batch(1), make_mesh(MeshConfig(spatial=2)), 0)
    assert whole["image"].addressable_shards[0].data.shape == (2, 4, 4, 3)
    np.testing.assert_array_equal(local_rows(whole["image"]), numbered_batch(1)["image"])


def test_uneven_heights_are_padded_with_ignored_rows():
    mesh = make_mesh(MeshConfig(spatial=2))
    batch = numbered_batch(1, height=5) | {"label": np.zeros((4, 5, 4), np.uint8)}
    padded = place(batch, mesh, 4)
    assert padded["image"].addressable_shards[0].data.shape == (2, 4, 4, 3)
    assert (np.asarray(padded["image"])[:, :5] == 1).all()
    assert np.asarray(padded["label"])[0, :, 0].tolist() == [0] * 5 + [255] * 3


def test_prefetch_keeps_the_order_and_does_not_read_too_far_ahead():
    read = []

    def source():
        for i in range(5):
            read.append(i)
            yield numbered_batch(i)

    items = prefetch(source(), make_mesh(MeshConfig()), 1, ahead=2)
    host, device = next(items)
    assert read == [0, 1]
    assert host["image"][0, 0, 0, 0] == device["image"][0, 0, 0, 0] == 0
    assert [int(host["image"][0, 0, 0, 0]) for host, _ in items] == [1, 2, 3, 4]


def test_the_suggested_batch_leaves_two_images_in_each_micro_batch():
    mesh = make_mesh(MeshConfig(data=1))
    with pytest.raises(ConfigError, match=r"over 1 device x 2 micro-batches\. Use 4, or"):
        check_batch(3, mesh, "data.batch_size", 2)
    with pytest.raises(ConfigError, match=r"x 2 micro-batches\. Use 4 or 6, or"):
        check_batch(5, mesh, "data.batch_size", 2)
