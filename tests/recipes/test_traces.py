"""Test that each traced recipe has the values of its table, and that the table has every value of both configs."""

import dataclasses
import os
import subprocess
import sys

import pytest
from conftest import CONFIGS, ROOT
from trace_page import TRACES, render_page
from trace_rows import list_ours, load_config, match_names, read_field

from deeplab_jax.config import Config

PAGE = ROOT / "docs" / "reference" / "recipes.md"
each_trace = pytest.mark.parametrize("trace", TRACES, ids=lambda trace: trace.recipe)


def as_tuples(value):
    return tuple(as_tuples(item) for item in value) if isinstance(value, list | tuple) else value


def list_changed_fields(config):
    names = ["seed", "labels"]
    for section in ("model", "data", "loss", "optim", "train", "eval", "mesh"):
        names += [f"{section}.{field.name}" for field in dataclasses.fields(getattr(config, section))]
    return [name for name in names if read_field(config, name) != read_field(Config(), name)]


@each_trace
def test_the_recipe_has_the_values_in_its_table(trace):
    config = load_config(trace)
    stated = {name: value for row in trace.rows for name, value in list_ours(row, trace).items()}
    assert {name: as_tuples(read_field(config, name)) for name in stated} == stated


@each_trace
def test_every_value_of_the_reference_is_in_one_row(trace):
    matched = [name for row in trace.rows for name in match_names(row, trace)]
    assert sorted(matched) == sorted(trace.reference)
    unused = [
        pattern
        for row in trace.rows
        for pattern in row.theirs
        if not match_names(dataclasses.replace(row, theirs=(pattern,)), trace)
    ]
    assert unused == []


@each_trace
def test_every_field_that_is_not_the_default_is_in_one_row(trace):
    stated = [name for row in trace.rows for name in row.ours]
    assert len(stated) == len(set(stated))
    assert set(list_changed_fields(load_config(trace))) <= set(stated)


@each_trace
def test_every_row_that_is_not_equal_says_why(trace):
    assert [row.theirs for row in trace.rows if (row.relation == "equal") == bool(row.note)] == []


def test_the_generated_page_is_up_to_date():
    stale = "docs/reference/recipes.md is stale. Run python tests/recipes/trace_page.py > docs/reference/recipes.md"
    assert PAGE.read_text() == render_page(), stale


@pytest.mark.long  # 90 seconds in total
@each_trace
@pytest.mark.parametrize("devices", [1, 8])
def test_the_plan_has_the_stated_figures(trace, devices):
    memory, least, likely = trace.plan[devices]
    at_peak_rate = print_plan(trace, devices, mfu=1)
    assert f"needs about {memory} of" in at_peak_rate
    assert f"steps: {least}," in at_peak_rate
    assert f"steps: {likely}," in print_plan(trace, devices, mfu=0.4)


def print_plan(trace, devices, mfu):
    # A process of its own, because the tests have only four devices.
    flags = (
        f"--config {CONFIGS / trace.recipe}.py --accelerator h100 --devices {devices} --no-compile --images 2975 --mfu {mfu}"
    )
    program = [sys.executable, "-m", "deeplab_jax", "plan", *flags.split()]
    environment = {name: value for name, value in os.environ.items() if name != "JAX_NUM_CPU_DEVICES"}
    return subprocess.run(program, env=environment, check=True, capture_output=True, text=True).stdout
