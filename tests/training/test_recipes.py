"""Trace every recipe's training step with a narrow network and small crops, without compiling it."""

import dataclasses
import runpy

import jax
import jax.numpy as jnp
import pytest
from conftest import RECIPES

from deeplab_jax.training.begin import abstract_state, set_up
from deeplab_jax.training.step import compile_train_step


def make_narrow(config):
    # More blocks of the same kind would only take longer.
    backbone = "seven_bottlenecks" if config.model.backbone in ("resnet50", "resnet101") else config.model.backbone
    decoder_width = min(config.model.decoder_width, 8)
    config.model = dataclasses.replace(
        config.model, backbone=backbone, width=8, aspp_width=8, decoder_width=decoder_width, pretrained=""
    )
    config.data = dataclasses.replace(config.data, crop_size=(64, 64))
    if config.loss.ohem_threshold:
        config.loss = dataclasses.replace(config.loss, ohem_min_kept=100)
    return config


def list_narrow_configs():
    """Return the configs by recipe. Of recipes that only differ in what `make_narrow` changes, only the first one is in it."""
    configs = {}
    for path in RECIPES:
        config = make_narrow(runpy.run_path(str(path))["get_config"]())
        if config not in configs.values():
            configs[path.stem] = config
    return configs


CONFIGS = list_narrow_configs()


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_step_of_every_recipe_keeps_the_shapes_of_the_state(config):
    setup = set_up(config, 100)
    step = compile_train_step(setup.mesh, config=config, model=setup.model, optimizer=setup.optimizer)
    n, (height, width) = config.data.batch_size, config.data.crop_size
    batch = {
        "image": jax.ShapeDtypeStruct((n, height, width, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct((n, height, width), jnp.uint8),
        "valid": jax.ShapeDtypeStruct((n,), bool),
    }
    if config.data.photometric:
        batch["photometric"] = jax.ShapeDtypeStruct((n, 5), jnp.float32)
    before = abstract_state(setup)
    after, scalars = jax.eval_shape(step, before, batch)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), before)
    assert scalars["loss"].shape == ()
