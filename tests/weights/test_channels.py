"""Test networks for other numbers of channels, and how RGB weights start them."""

import dataclasses

import conftest
import numpy as np
import pytest
from conftest import tiny_config, tiny_model, tiny_resnet18
from safetensors.numpy import load_file
from test_transfer import MMSEG, import_state, make_state_dict, random_variables

from deeplab_jax import api
from deeplab_jax.checkpoints.store import save_model, stored_config
from deeplab_jax.config import Config
from deeplab_jax.errors import CheckpointError, ConfigError
from deeplab_jax.models import BACKBONES, DeepLabV3, graph, validate
from deeplab_jax.models.convolution import conv2d
from deeplab_jax.models.stages import FIRST_LAYERS
from deeplab_jax.weights import names, transfer
from deeplab_jax.weights.channels import adapt_kernel

pytestmark = pytest.mark.usefixtures("trace_networks_once")


def with_channels(config, channels):
    data = dataclasses.replace(config.data, channels=channels)
    return validate(dataclasses.replace(config, data=data))


def initial_logits(stored, channels, images, **fields):
    """Return the logits for images of a network with `channels` channels that starts from a folder with RGB weights."""
    config = tiny_config(model=tiny_model(pretrained=stored, **fields))
    config = with_channels(config, channels)
    return api.Segmenter(config, transfer.pretrained_variables(config, lambda _: None)).logits(images)


def store_rgb(tmp_path, **fields):
    config = tiny_config(model=tiny_model(**fields))
    save_model(str(tmp_path / "rgb"), config, conftest.random_variables(DeepLabV3(config.model, config.labels.num_classes)))
    return str(tmp_path / "rgb")


def test_kernels_are_adapted_as_in_timm():
    kernel = np.random.default_rng(0).normal(size=(3, 3, 3, 2)).astype(np.float32)
    r, g, b = (kernel[:, :, i] for i in range(3))
    expected = {
        1: [r + g + b],
        2: [r * 1.5, g * 1.5],
        4: [r * 0.75, g * 0.75, b * 0.75, r * 0.75],
        6: [r / 2, g / 2, b / 2] * 2,
    }
    for channels, kernels in expected.items():
        actual = adapt_kernel(kernel, channels)
        assert actual.dtype == np.float32
        np.testing.assert_allclose(actual, np.stack(kernels, 2), rtol=1e-6)


def test_a_grey_network_equals_the_rgb_network_on_repeated_grey(tmp_path):
    # It is exact if R, G and B have the same mean and standard deviation: each kernel then reads the same normalised values.
    stored = store_rgb(tmp_path, mean=(110.0,) * 3, std=(60.0,) * 3)
    grey = np.random.default_rng(1).integers(0, 256, (1, 1, 40, 33), np.uint8)
    expected = api.load(stored).logits(np.repeat(grey, 3, axis=1))
    actual = initial_logits(stored, 1, grey, mean=(110.0,), std=(60.0,))
    # Summing the kernels first rounds differently, in float32.
    assert np.linalg.norm(actual - expected) < 1e-5 * np.linalg.norm(expected)


def test_a_network_for_six_bands_equals_the_rgb_network_on_repeated_rgb(tmp_path):
    stored = store_rgb(tmp_path)
    rgb = np.random.default_rng(1).integers(0, 256, (1, 3, 40, 33), np.uint8)
    expected, actual = api.load(stored).logits(rgb), initial_logits(stored, 6, np.concatenate([rgb, rgb], 1))
    assert np.linalg.norm(actual - expected) < 1e-5 * np.linalg.norm(expected)  # the sums over channels round differently


def test_weights_for_other_values_say_so_also_when_they_are_adapted(tmp_path):
    stored, lines = store_rgb(tmp_path, mean=(110.0,) * 3), []
    config = with_channels(tiny_config(model=tiny_model(pretrained=stored)), 4)
    transfer.pretrained_variables(config, lines.append)
    assert lines[2:] == [
        f"model.mean is {config.model.mean} in the config, but these weights were trained with (110.0, 110.0, 110.0, 110.0)"
    ]


def test_weights_for_another_range_of_values_say_so(tmp_path):
    stored, lines = store_rgb(tmp_path), []
    config = tiny_config(model=tiny_model(pretrained=stored))
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, value_range=(0.0, 4095.0)))
    transfer.pretrained_variables(config, lines.append)
    assert lines[1:] == ["data.value_range is (0.0, 4095.0) in the config, but these weights were trained with ()"]


def test_the_adaptation_is_reported_and_other_numbers_of_channels_are_refused(tmp_path):
    stored, lines = store_rgb(tmp_path), []
    config = with_channels(tiny_config(model=tiny_model(pretrained=stored)), 4)
    transfer.pretrained_variables(config, lines.append)
    assert lines[1:] == [
        "the first convolution was adapted from 3 channels to 4: its R, G and B kernels were repeated and multiplied by 3/4"
    ]
    save_model(str(tmp_path / "four"), config, names.unflatten(random_variables(config)))
    for channels, advice in ((3, r"Set it to 4, or use weights for 3 channels"), (1, "for 3 or 1 channels")):
        other = with_channels(tiny_config(model=tiny_model(pretrained=str(tmp_path / "four"))), channels)
        with pytest.raises(ConfigError, match=rf"`data.channels` \(={channels}\) is 4 in .*{advice}"):
            transfer.pretrained_variables(other)
    with pytest.raises(CheckpointError, match=r"`data.channels` \(=3\) is 4 in"):
        transfer.checkpoints.restore_model(str(transfer.checkpoints.resolve(str(tmp_path / "four"))), like=tiny_config())


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize(("fmt", "model"), [("mmseg", MMSEG), ("timm", tiny_resnet18())])
def test_files_with_other_numbers_of_channels_are_read_and_written(tmp_path, channels, fmt, model):
    config = with_channels(Config(model=model), channels)
    variables = {path: x for path, x in random_variables(config).items() if fmt == "mmseg" or path[1] == "backbone"}
    state = make_state_dict(variables, config.model, fmt)
    folder, lines = import_state(tmp_path, state)
    assert f"data.channels = {channels}  (from the tensors)" in lines
    assert stored_config(str(transfer.checkpoints.resolve(folder))).data.channels == channels
    start = dataclasses.replace(config, model=dataclasses.replace(config.model, pretrained=folder))
    loaded = names.flatten(transfer.pretrained_variables(start, lambda _: None))
    assert all(np.array_equal(loaded[path], x) for path, x in variables.items())
    if fmt == "mmseg":
        out, printed = str(tmp_path / "out.safetensors"), []
        transfer.export_weights(folder, out, fmt="mmseg", say=printed.append)
        assert f"'in_channels': {channels}" in printed[1]
        written = load_file(out)
        assert all(np.array_equal(written[name], x) for name, x in state.items() if "num_batches" not in name)
        again, _ = import_state(tmp_path, written, "again.safetensors")
        assert api.load(again).config.data.channels == channels


def test_more_than_eight_channels_are_refused(tmp_path):
    state = make_state_dict(random_variables(Config(model=MMSEG)), MMSEG, "mmseg")
    state["backbone.stem.0.weight"] = np.ones((4, 9, 3, 3), np.float32)
    with pytest.raises(CheckpointError, match="reads images with 9 channels, more than 8"):
        import_state(tmp_path, state)


@pytest.mark.parametrize("backbone", ["resnet18", "resnext50_32x4d", "mobilenetv3_large", "xception41"])
@pytest.mark.parametrize("stem", ["7x7", "3x3"])
def test_the_layer_that_reads_the_image_has_a_known_name(backbone, stem):
    if "stem" not in BACKBONES[backbone].switches and stem == "3x3":
        pytest.skip("this backbone has one stem")
    module = BACKBONES[backbone].make(tiny_model(backbone=backbone, stem=stem, width=64))
    recorded = graph.record(
        lambda variables, images: module.apply(variables, images, False),
        graph.abstract_variables(module),
        graph.abstract_images(module),
    )
    first = next(node for node in recorded.nodes if node.operation is conv2d)
    assert first.arguments["x"] == recorded.images
    assert first.arguments["kernel"].path[1:-1] in {(name,) for name in FIRST_LAYERS}


def test_the_variables_of_other_channels_differ_only_in_the_first_kernel():
    shapes = [
        names.flatten(graph.abstract_variables(DeepLabV3(with_channels(Config(model=tiny_model()), n).model, 2)))
        for n in (3, 5)
    ]
    different = {path for path in shapes[0] if shapes[0][path].shape != shapes[1][path].shape}
    assert different == {("params", "backbone", "stem_conv", "kernel")}
    assert shapes[1]["params", "backbone", "stem_conv", "kernel"].shape == (7, 7, 5, 8)
