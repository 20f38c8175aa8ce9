import dataclasses
import math

import pytest
from conftest import tiny_config, tiny_model, tiny_resnet18

from deeplab_jax.config import Config, ModelConfig
from deeplab_jax.models import cost as flops
from deeplab_jax.weights.convert import variable_shapes


def test_a_tiny_network_counted_by_hand():
    parts = {layer.name: layer for layer in flops.by_part(flops.layers(tiny_resnet18(), 19, (32, 64)))}
    assert list(parts) == ["stem", "stage 1", "stage 2", "stage 3", "stage 4", "ASPP", "classifier"]
    stem = parts["stem"]
    assert stem.flops == 2 * (16 * 32) * (7 * 7 * 3 * 8)
    assert (stem.parameters, stem.statistics) == (7 * 7 * 3 * 8 + 2 * 8, 2 * 8)
    assert (stem.inputs, stem.outputs, stem.weights) == (4 * 32 * 64 * 3, 4 * 16 * 32 * 8, 4 * 7 * 7 * 3 * 8)
    assert parts["stage 1"].flops == 4 * 2 * (8 * 16) * (3 * 3 * 8 * 8)
    # From 64 channels: 1x1, three 3x3 whose taps count wherever they fall, a pooled pixel, and 1x1 over all five.
    assert parts["ASPP"].flops == 2 * (2 * 4 * (64 * 8 + 3 * 9 * 64 * 8 + 5 * 8 * 8) + 64 * 8)
    assert (parts["classifier"].flops, parts["classifier"].parameters) == (2 * (2 * 4) * 8 * 19, 8 * 19 + 19)


def test_a_decoder_counted_by_hand():
    model = tiny_resnet18(decoder_width=16, low_level_width=4)
    parts = {layer.name: layer for layer in flops.by_part(flops.layers(model, 19, (32, 64)))}
    assert list(parts)[-2:] == ["decoder", "classifier"]
    assert parts["decoder"].flops == 2 * (8 * 16) * (8 * 4 + 9 * (8 + 4) * 16 + 9 * 16 * 16)
    assert parts["classifier"].flops == 2 * (8 * 16) * 16 * 19


DILATED = {"output_stride": 16, "multi_grid": (1.0, 1.0, 1.0), "atrous_rates": (12, 24, 36)}


@pytest.mark.parametrize(
    ("backbone", "switches", "multiply_adds", "parameters"),
    [
        ("resnet50", {"output_stride": 8}, 178.722, 42.004074),
        ("resnet101", {"output_stride": 8}, 258.743, 60.996202),
        ("mobilenetv3_large", DILATED, 10.452, 11.029328),
    ],
)
def test_torchvisions_networks_have_the_figures_that_it_publishes(backbone, switches, multiply_adds, parameters):
    model = ModelConfig(backbone=backbone, fusion="1x1+3x3", aux_head=True, **switches)
    counted = flops.total(flops.layers(model, 21, (520, 520)))
    assert counted.parameters / 1e6 == pytest.approx(parameters, rel=1e-9)
    assert counted.flops / 2e9 == pytest.approx(multiply_adds, rel=5e-5)  # its table counts a multiply-add as one


@pytest.mark.parametrize(
    "model", [tiny_resnet18(), ModelConfig(stem="3x3", fusion="3x3", aux_head=True, dtype="bfloat16", remat=(1, 2))]
)
def test_parameters_are_those_of_the_network(model):
    counted = flops.total(flops.layers(model, 19, (64, 64)))
    shapes = variable_shapes(Config(model=model))
    for kind, number in (("params", counted.parameters), ("batch_stats", counted.statistics)):
        assert number == sum(math.prod(shape) for path, shape in shapes.items() if path[0] == kind)


def test_a_step_has_three_times_the_forward_pass_of_its_batch_however_it_is_computed():
    config = tiny_config()
    forward = flops.total(flops.layers(config.model, 19, (32, 64))).flops
    assert flops.training_flops(config) == 3 * 4 * forward
    again = dataclasses.replace(config, model=tiny_model(dtype="bfloat16", remat=(1, 2, 3, 4)))
    assert flops.training_flops(again) == 3 * 4 * forward
