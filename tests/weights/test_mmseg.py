"""Tests of the configurations in mmsegmentation's checkpoints. test_recognize.py has those of whole files."""

import numpy as np
import pytest

from deeplab_jax.config import ModelConfig
from deeplab_jax.errors import CheckpointError
from deeplab_jax.weights.source import StateDict
from deeplab_jax.weights.sources import SOURCES

MODEL = """
model = dict(
    backbone=dict(type='ResNetV1c', depth=50, strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2), contract_dilation=True),
    decode_head=dict(type='ASPPHead', dilations=(1, 6, 12, 18)))
"""


def read_facts(text, **meta):
    """Return what is read from the configuration `text` and further metadata, after all checks."""
    state = StateDict("x.pth", {"decode_head.conv_seg.weight": np.zeros((19, 8, 1, 1), np.float32)}, {"cfg": text} | meta)
    SOURCES["mmseg"].check_settings(state)
    return SOURCES["mmseg"].read_facts(state, ModelConfig(), {})


@pytest.mark.parametrize(
    ("part", "setting", "fault"),
    [
        ("backbone", "norm_cfg=dict(type='SyncBN', eps=0.001)", "backbone.norm_cfg.eps=0.001, but only 1e-05"),
        ("backbone", "conv_cfg=dict(type='ConvWS')", "backbone.conv_cfg.type='ConvWS', but only 'Conv2d'"),
        ("decode_head", "norm_cfg=dict(type='BN', eps=0.001)", "decode_head.norm_cfg.eps=0.001"),
        ("decode_head", "conv_cfg=dict(type='ConvAWS')", "decode_head.conv_cfg.type='ConvAWS'"),
        ("decode_head", "act_cfg=dict(type='LeakyReLU')", "decode_head.act_cfg.type='LeakyReLU', but only 'ReLU'"),
        ("decode_head", "act_cfg=None", "decode_head.act_cfg.type=None"),
    ],
)
def test_other_layers_with_the_same_tensors_are_refused(part, setting, fault):
    with pytest.raises(CheckpointError, match=f"was trained with {fault}"):
        read_facts(MODEL.replace(f"{part}=dict(", f"{part}=dict({setting}, "))


def test_our_layers_can_be_named():
    names = "norm_cfg=dict(type='SyncBN', eps=1e-05), conv_cfg=None, act_cfg=dict(type='ReLU', inplace=True)"
    longer = "conv_cfg=dict(type='Conv'), act_cfg=dict(type='torch.nn.modules.activation.ReLU')"
    for settings in (names, longer):
        text = MODEL.replace("decode_head=dict(", f"decode_head=dict({settings}, ")
        assert read_facts(text)["model.output_stride"][0] == 16


@pytest.mark.parametrize(
    ("meta", "ids", "ignored"),
    [
        ({}, (0, 1), (255,)),
        # Version 1.x has reduce_zero_label in its data sets' classes, so the configuration need not say it.
        ({"reduce_zero_label": True}, (1, 2), (0, 255)),
        # Some classes of a data set, in another order.
        ({"label_map": {"0": 255, "1": 1, "2": 255, "3": 0}}, (3, 1), (0, 2, 255)),
        ({"label_map": {"0": -1, "1": 1, "2": 0}, "reduce_zero_label": True}, (3, 2), (0, 1, 255)),
    ],
)
def test_label_files_have_the_values_that_the_data_set_had(meta, ids, ignored):
    meta = {"classes": ("a", "b"), "palette": [[1, 2, 3], [4, 5, 6]]} | meta
    labels, _ = read_facts(MODEL, dataset_meta=meta)["labels"]
    assert (labels.class_ids, labels.ignored_ids) == (ids, ignored)


# In the versions 0.x and 1.x.
PIPELINES = (
    "test_pipeline = [dict(type='MultiScaleFlipAug', img_scale=(2048, 512), transforms=[dict(type='Resize')])]",
    "test_pipeline = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(2048, 512), keep_ratio=True)]",
)


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_the_size_of_test_images_is_a_note(pipeline):
    def read_notes(text):
        return SOURCES["mmseg"].read_notes(StateDict("x.pth", {}, {"cfg": text}))

    (note,) = read_notes(pipeline)
    assert note.startswith("mmsegmentation resizes images for these weights to fit into 2048x512 pixels. eval.py and predict")
    large = pipeline.replace("512", "1024")
    assert not read_notes(f"dataset_type = 'CityscapesDataset'\n{large}")  # its images have this size
    assert "2048x1024" in read_notes(large)[0]  # other images do not, although most configurations copy it
    for other in ("", "test_pipeline = 1", "test_pipeline = [1]", pipeline.replace("(2048, 512)", "512")):
        assert not read_notes(other)


HEAD = {"decode_head.aspp_modules.0.conv.weight": (8, 8, 1, 1), "decode_head.conv_seg.weight": (19, 8, 1, 1)}
AUXILIARY = {"auxiliary_head.convs.0.conv.weight": (4, 16, 3, 3), "auxiliary_head.conv_seg.weight": (19, 4, 1, 1)}


@pytest.mark.parametrize(
    ("auxiliary", "is_ours"),
    [
        ({}, False),
        (AUXILIARY, True),
        (AUXILIARY | {"auxiliary_head.convs.0.bn.weight": (4,)}, True),
        (AUXILIARY | {"auxiliary_head.convs.0.conv.weight": (8, 16, 3, 3)}, False),  # another width
        (AUXILIARY | {"auxiliary_head.convs.0.conv.weight": (2, 8, 3, 3)}, False),  # another stage
        (AUXILIARY | {"auxiliary_head.convs.1.conv.weight": (4, 4, 3, 3)}, False),  # two convolutions
        ({name.replace("head.", f"head.{i}."): shape for i in (0, 1) for name, shape in AUXILIARY.items()}, False),
    ],
)
def test_only_an_auxiliary_head_of_our_form_is_used(auxiliary, is_ours):
    shapes = HEAD | {"backbone.layer4.0.conv1.weight": (8, 16, 1, 1)} | auxiliary
    assert SOURCES["mmseg"].read_head(shapes)["aux_head"] is is_ours
