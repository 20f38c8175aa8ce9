"""Where a run's data lies now."""

import dataclasses

import pytest
from conftest import tiny_config

from deeplab_jax.commands import datasets as wiring
from deeplab_jax.commands.datasets import locate_data
from deeplab_jax.errors import ConfigError


def test_data_is_where_the_run_found_it_or_where_it_is_said_to_be(street_scenes):
    config = tiny_config("there")
    assert locate_data(config, None) is config
    assert locate_data(config, str(street_scenes)).data == dataclasses.replace(config.data, root=str(street_scenes))
    assert config.data.root == "there"


def test_records_stand_in_for_a_set_of_tfds(tmp_path, monkeypatch):
    config = tiny_config("there")
    config.data.source = "tfds:cityscapes"
    assert locate_data(config, str(tmp_path)).data.source == "tfds:cityscapes"
    monkeypatch.setattr(wiring, "is_records", lambda root: root == str(tmp_path))
    assert locate_data(config, str(tmp_path)).data.source == ""


def test_a_place_that_is_none_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="give --root"):
        locate_data(tiny_config(), None)
    with pytest.raises(ConfigError, match=r"`--root` \(='.*nowhere'\) is no folder"):
        locate_data(tiny_config("there"), str(tmp_path / "nowhere"))
