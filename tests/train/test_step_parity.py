"""A training under torchvision's recipe gives PyTorch's numbers: the golden file that tests/parity/train_step.py wrote."""

import pathlib

import fill
import jax
import numpy as np
import pytest
import steps

GOLDEN = pathlib.Path(fill.__file__).parent / "golden"


LONG = [pytest.param(name, marks=pytest.mark.long) for name in ("torchvision_r50", "torchvision_mobilenetv3")]


@pytest.mark.parametrize("name", ["mmseg_r18", *LONG])
def test_five_steps_are_pytorchs(name):
    """In float64: in float32 an activation that rounds to the other side of 0 changes a gradient by more than any mistake."""
    golden = np.load(GOLDEN / f"train_{name}.npz")
    network = np.load(GOLDEN / f"{name}_129x97.npz")
    shapes = {str(key): tuple(map(int, shape.split())) for key, shape in zip(network["names"], network["shapes"], strict=True)}
    with jax.enable_x64(True):
        ours = steps.numbers(steps.Ours(fill.fill(shapes), str(network["published"]), "float64"), network["logits"].shape[-1])
    assert ours.keys() == set(golden)
    sampled = {key: ours[key].reshape(-1)[: expected.size] for key, expected in golden.items()}
    nothing = steps.vanishing(dict(golden))
    assert steps.vanishing(sampled) == nothing
    for key in set(golden) - nothing:
        error = np.linalg.norm(sampled[key] - golden[key]) / np.linalg.norm(golden[key])
        # Measured: at most 1e-12, in the gradients.
        assert error < 1e-9, key
