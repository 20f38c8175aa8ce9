"""Tests for locating a run's data set."""

import dataclasses

import pytest
from conftest import tiny_config

from deeplab_jax.commands import datasets
from deeplab_jax.commands.datasets import locate_data
from deeplab_jax.errors import ConfigError


def test_root_replaces_the_location_of_the_run(street_scenes):
    config = tiny_config("there")
    assert locate_data(config, None) is config
    assert locate_data(config, str(street_scenes)).data == dataclasses.replace(config.data, root=str(street_scenes))
    assert config.data.root == "there"


def test_records_can_replace_a_tfds_data_set(tmp_path, monkeypatch):
    config = tiny_config("there")
    config.data.source = "tfds:cityscapes"
    assert locate_data(config, str(tmp_path)).data.source == "tfds:cityscapes"
    monkeypatch.setattr(datasets, "is_records", lambda root: root == str(tmp_path))
    assert locate_data(config, str(tmp_path)).data.source == ""


def test_a_missing_or_wrong_root_is_reported(tmp_path):
    with pytest.raises(ConfigError, match="Give the folder with --root"):
        locate_data(tiny_config(), None)
    with pytest.raises(ConfigError, match=r"`--root` \(='.*nowhere'\) is not a folder"):
        locate_data(tiny_config("there"), str(tmp_path / "nowhere"))
