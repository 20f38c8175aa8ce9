import dataclasses
import math

import pytest
from conftest import tiny_config, tiny_model, tiny_resnet18

from deeplab_jax.config import Config, ModelConfig
from deeplab_jax.models import cost
from deeplab_jax.weights.convert import variable_shapes


def test_costs_of_a_tiny_network_match_hand_counts():
    parts = {layer.name: layer for layer in cost.by_part(cost.layers(tiny_resnet18(), 19, (32, 64)))}
    assert list(parts) == ["stem", "stage 1", "stage 2", "stage 3", "stage 4", "ASPP", "classifier"]
    stem = parts["stem"]
    assert stem.flops == 2 * (16 * 32) * (7 * 7 * 3 * 8)
    assert (stem.parameters, stem.statistics) == (7 * 7 * 3 * 8 + 2 * 8, 2 * 8)
    assert (stem.inputs, stem.outputs, stem.weights) == (4 * 32 * 64 * 3, 4 * 16 * 32 * 8, 4 * 7 * 7 * 3 * 8)
    assert parts["stage 1"].flops == 4 * 2 * (8 * 16) * (3 * 3 * 8 * 8)
    # The ASPP input has 64 channels. The terms are the 1x1 branch, three 3x3 branches (including taps in the padding), the 1x1
    # fusion of five branches, and the pooling branch, which has a single pixel.
    assert parts["ASPP"].flops == 2 * (2 * 4 * (64 * 8 + 3 * 9 * 64 * 8 + 5 * 8 * 8) + 64 * 8)
    assert (parts["classifier"].flops, parts["classifier"].parameters) == (2 * (2 * 4) * 8 * 19, 8 * 19 + 19)


def test_costs_of_a_decoder_match_hand_counts():
    model = tiny_resnet18(decoder_width=16, low_level_width=4)
    parts = {layer.name: layer for layer in cost.by_part(cost.layers(model, 19, (32, 64)))}
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
def test_torchvision_networks_have_the_published_costs(backbone, switches, multiply_adds, parameters):
    model = ModelConfig(backbone=backbone, fusion="1x1+3x3", aux_head=True, **switches)
    total = cost.total(cost.layers(model, 21, (520, 520)))
    assert total.parameters / 1e6 == pytest.approx(parameters, rel=1e-9)
    assert total.flops / 2e9 == pytest.approx(multiply_adds, rel=5e-5)  # torchvision counts a multiply-add as one operation


def test_a_mobilenetv2_has_the_published_cost():
    layers = cost.layers(ModelConfig(backbone="mobilenetv2", output_stride=32), 19, (224, 224))
    flops = sum(layer.flops for layer in layers if layer.name.startswith("backbone/")) + 2 * 1280 * 1000
    assert flops / 2e9 == pytest.approx(0.300774, rel=2e-6)  # 0.301 in torchvision, for the ImageNet network


@pytest.mark.parametrize(
    "model", [tiny_resnet18(), ModelConfig(stem="3x3", fusion="3x3", aux_head=True, dtype="bfloat16", remat=(1, 2))]
)
def test_counted_parameters_match_the_variables_of_the_network(model):
    total = cost.total(cost.layers(model, 19, (64, 64)))
    shapes = variable_shapes(Config(model=model))
    for kind, number in (("params", total.parameters), ("batch_stats", total.statistics)):
        assert number == sum(math.prod(shape) for path, shape in shapes.items() if path[0] == kind)


def test_a_training_step_costs_three_forward_passes_regardless_of_dtype_and_remat():
    config = tiny_config(model=tiny_model())
    forward = cost.total(cost.layers(config.model, 19, (32, 64))).flops
    assert cost.training_flops(config) == 3 * 4 * forward
    changed = dataclasses.replace(config, model=tiny_model(dtype="bfloat16", remat=(1, 2, 3, 4)))
    assert cost.training_flops(changed) == 3 * 4 * forward
