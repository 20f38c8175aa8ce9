"""Compare training steps with PyTorch's results, using torchvision's recipe.

tests/parity/train_step.py wrote the golden files.
"""

import pathlib

import fill
import jax
import numpy as np
import pytest
import steps

from deeplab_jax.models.target import compiling_for
from deeplab_jax.training import step

GOLDEN = pathlib.Path(fill.__file__).parent / "golden"


LONG = [pytest.param(name, marks=pytest.mark.long) for name in ("torchvision_r50", "torchvision_mobilenetv3")]


@pytest.mark.slow
@pytest.mark.parametrize("target", ["cpu", pytest.param("gpu", marks=pytest.mark.long)])
@pytest.mark.parametrize("name", ["mmseg_r18", *LONG])
def test_five_steps_match_pytorch(name, target, monkeypatch):
    """Compare in float64. The programs for both targets run on the CPU.

    In float32, an activation near 0 can round to the other side of 0, which changes the gradients more than many bugs would.
    """
    monkeypatch.setattr(step, "compiling_for", lambda *_: compiling_for(target))
    golden = np.load(GOLDEN / f"train_{name}.npz")
    network = np.load(GOLDEN / f"{name}_129x97.npz")
    shapes = {str(key): tuple(map(int, shape.split())) for key, shape in zip(network["names"], network["shapes"], strict=True)}
    with jax.enable_x64(True):
        run = steps.Ours(fill.fill(shapes), str(network["published"]), "float64")
        actual = steps.run_steps(run, network["logits"].shape[-1])
    expected = dict(golden)
    assert actual.keys() == expected.keys()
    sampled = {key: actual[key].reshape(-1)[: values.size] for key, values in expected.items()}
    vanishing_names = steps.find_vanishing_gradients(expected)
    assert steps.find_vanishing_gradients(sampled) == vanishing_names
    for key in set(expected) - vanishing_names:
        error = np.linalg.norm(sampled[key] - expected[key]) / np.linalg.norm(expected[key])
        # The largest measured error is 1e-12, in the gradients.
        assert error < 1e-9, key
