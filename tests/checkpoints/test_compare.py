"""Test which configs a checkpoint can be used with. test_store.py does the same with checkpoints on disk."""

import dataclasses

import pytest
from conftest import tiny_resnet18

from deeplab_jax.checkpoints.compare import compare_configs
from deeplab_jax.config import Config, ModelConfig, to_dict
from deeplab_jax.errors import CheckpointError
from deeplab_jax.labels import CITYSCAPES, VOC
from deeplab_jax.models import canonical
from deeplab_jax.models.backbones.mobilenetv3 import STAGES
from deeplab_jax.models.backbones.resnet import DEPTHS
from deeplab_jax.models.stages import stage_dilations

BLOCKS = {name: blocks for name, (blocks, _) in DEPTHS.items()} | {"mobilenetv3_large": [len(stage) for stage in STAGES]}
# Each row gives two spellings of the same network.
EQUAL = [
    ({"low_level_width": 48}, {"low_level_width": 32}),
    ({"multi_grid": (0.5, 1.0)}, {"multi_grid": (0.5, 1.0, 1.0)}),
    ({"multi_grid": (0.5, 1)}, {"multi_grid": [0.5, 1.0, 1.0, 1.0]}),
    ({"multi_grid": (1.0,)}, {"multi_grid": (1.0, 1.0, 1.0)}),
    ({"multi_grid": (1.0, 2.0)}, {"multi_grid": (1.0, 2.0, 4.0)}),  # ResNet-18's last stage has two blocks
    ({"backbone": "resnet50", "multi_grid": (1.0, 2.0, 4.0)}, {"backbone": "resnet50", "multi_grid": (1.0, 2.0, 4.0, 8.0)}),
    ({"backbone": "resnet50", "dilate_conv2": True}, {"backbone": "resnet50", "dilate_conv2": False}),
    ({"aux_dropout": 0.1}, {"aux_dropout": 0.3}),
]
DIFFERENT = [
    ("low_level_width", {"decoder_width": 8}, {"decoder_width": 8, "low_level_width": 32}),
    ("multi_grid", {"multi_grid": (0.5, 1.0)}, {"multi_grid": (0.5, 2.0)}),
    ("multi_grid", {"backbone": "resnet50", "multi_grid": (1, 2, 2)}, {"backbone": "resnet50", "multi_grid": (1, 2, 4)}),
    ("dilate_conv2", {"dilate_conv2": True}, {"dilate_conv2": False}),
    ("decoder_width", {}, {"decoder_width": 8, "low_level_width": 32}),
]


@pytest.mark.parametrize(("then", "now"), EQUAL)
def test_two_spellings_of_the_same_network_are_equal(then, now):
    assert compare_configs(Config(model=tiny_resnet18(**then)), Config(model=tiny_resnet18(**now)), "a run") == []
    assert canonical(tiny_resnet18(**then)) == canonical(tiny_resnet18(**now))


@pytest.mark.parametrize(("field", "then", "now"), DIFFERENT)
def test_a_different_network_is_reported_in_the_spelling_of_the_config(field, then, now):
    then, now = Config(model=tiny_resnet18(**then)), Config(model=tiny_resnet18(**now))
    requested, stored = to_dict(now)["model"][field], to_dict(then)["model"][field]
    with pytest.raises(CheckpointError) as error:
        compare_configs(then, now, "a run")
    assert f"`model.{field}` (={requested!r}) is {stored!r} in a run. Change it back" in str(error.value)


def test_ids_that_are_merged_into_the_same_classes_are_reported():
    then = Config()
    now = dataclasses.replace(then, labels=dataclasses.replace(CITYSCAPES, ignored_ids=(255,), more_ids=((9,), *[()] * 18)))
    changes = compare_configs(then, now, "a run")
    assert [change.split(":")[0] for change in changes] == ["labels.ignored_ids", "labels.more_ids"]
    assert changes[1].startswith("labels.more_ids: None -> [[9], []")
    assert len(compare_configs(now, then, "a run")) == 2


RENAMED = ("street", *CITYSCAPES.names[1:])


@pytest.mark.parametrize(
    ("labels", "difference"),
    [
        (dataclasses.replace(CITYSCAPES, names=RENAMED), "in which train id 0 is 'road' instead of 'street'"),
        (VOC, "which has 19 classes, 'road' to 'bicycle'"),
    ],
)
def test_the_message_about_another_label_set_says_what_differs(labels, difference):
    with pytest.raises(CheckpointError, match=f"is not the label set that a run was trained with, {difference}\\. Use"):
        compare_configs(Config(), Config(labels=labels), "a run")


@pytest.mark.parametrize("backbone", BLOCKS)
@pytest.mark.parametrize(
    "multi_grid", [(1.0,), (1.0, 1.0), (0.5, 1.0), (0.5, 1.0, 1.0), (1.0, 2.0, 4.0), (1.0, 2.0, 2.0, 2.0), (1, 2, 4, 8)]
)
def test_the_canonical_spelling_has_the_same_rates_at_every_stride(backbone, multi_grid):
    model = ModelConfig(backbone=backbone, multi_grid=multi_grid)
    canonical_model = canonical(model)
    assert canonical(canonical_model) == canonical_model
    for stride in (8, 16, 32):
        spelled, meant = (dataclasses.replace(each, output_stride=stride) for each in (model, canonical_model))
        assert stage_dilations(BLOCKS[backbone], spelled) == stage_dilations(BLOCKS[backbone], meant)


@pytest.mark.parametrize("backbone", DEPTHS)
def test_only_basic_blocks_have_a_second_convolution_to_dilate(backbone):
    undilated = ModelConfig(backbone=backbone, dilate_conv2=False)
    _, is_bottleneck = DEPTHS[backbone]
    assert canonical(undilated).dilate_conv2 == is_bottleneck


def test_other_differences_are_returned():
    config = Config(model=tiny_resnet18(low_level_width=32, output_stride=8), seed=3)
    stored = dataclasses.replace(config, model=tiny_resnet18(), seed=0)
    assert compare_configs(stored, config, "a run") == ["seed: 0 -> 3", "model.output_stride: 16 -> 8"]
