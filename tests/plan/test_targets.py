"""Test the descriptions of accelerators for their compilers. test_plan.py compiles programs for them."""

import importlib.util
import re

import pytest
from conftest import run_cli

from deeplab_jax.errors import ConfigError
from deeplab_jax.plan import targets
from deeplab_jax.runtime.accelerators import ACCELERATORS

# ml_collections uses a deprecated API to load recipes.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


@pytest.mark.parametrize(
    ("accelerator", "count", "topology"),
    [("v5e", 1, "1x1"), ("v5e", 8, "2x4"), ("v5e", 16, "4x4"), ("v5p", 16, "2x2x4"), ("v5p", None, "1x1x1")],
)
def test_chips_are_arranged_evenly(accelerator, count, topology):
    assert targets._choose_topology(accelerator, count, "") == topology


def test_chips_are_counted():
    assert targets.count_chips("v5p", "2x2x4") == 16
    with pytest.raises(ConfigError, match="is only for --accelerator v5e, v5p, v6e"):
        targets.count_chips("h100", "4x4")


def test_every_target_has_a_data_sheet():
    assert set(targets.GPUS) | set(targets.TPUS) <= set(ACCELERATORS)
    for name, gpu in targets.GPUS.items():
        assert re.search(ACCELERATORS[name].kinds, gpu.description)


@pytest.mark.parametrize(
    ("accelerator", "extra", "words"),
    [("h100", "plan-gpu", ("--devices", "8")), ("v5e", "plan-tpu", ("--topology", "4x4"))],
)
def test_a_missing_compiler_is_named(accelerator, extra, words, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    recipe = ("--config", "configs/cityscapes_r50_os8.py", "--batch-size", "16")
    code, output = run_cli(monkeypatch, capsys, "plan", *recipe, "--accelerator", accelerator, *words)
    assert code == 2
    assert f'Install it with `pip install -e ".[{extra}]"`, or add --no-compile' in output
    assert output.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("l4", 1, ""), "is not supported by the compilers, only a100, h100, h200, b200, v5e, v5p, v6e"),
        (("h100", 1, "4x4"), "`--topology` .* is only for TPUs"),
        (("v5e", None, "4x4x4"), "cannot be used for v5e. Use for example 4x4."),
        (("v5p", None, "4x4"), "cannot be used for v5p. Use for example 4x4x4."),
    ],
)
def test_arguments_that_describe_no_machine_are_rejected(arguments, message, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    with pytest.raises(ConfigError, match=message):
        targets.describe_devices(*arguments)
