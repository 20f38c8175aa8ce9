import pathlib
import re
import shlex
import sys
import types

import half_labels
import numpy as np
import pytest
from PIL import Image

from deeplab_jax.data.find import find_samples

# ml_collections uses a deprecated function to load recipes.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


def test_every_second_training_label_is_hidden(tmp_path):
    root, out = tmp_path / "camvid", tmp_path / "half"
    for split, stems in (("train", "abcde"), ("val", "xy")):
        for folder in (split, f"{split}annot"):
            (root / folder).mkdir(parents=True)
            for stem in stems:
                Image.fromarray(np.zeros((2, 2), np.uint8)).save(root / folder / f"{stem}.png")
    for _ in range(2):  # a second call changes nothing
        assert half_labels.hide_labels(root, out) == 5
        assert find_samples(str(out), "train").images == ("train/a.png", "train/c.png", "train/e.png")
        assert find_samples(str(out), "val").images == find_samples(str(root), "val").images
        assert sorted(path.name for path in (out / "unlabelled").rglob("*.png")) == ["b.png", "d.png"]
        assert sorted(path.name for path in (out / "trainannot").iterdir()) == ["a.png", "c.png", "e.png"]


def test_another_probability_or_network_makes_another_split(tmp_path, monkeypatch):
    predicted, commands = [], {}

    def label(words, **_):
        split = pathlib.Path(words[words.index("--out") + 1])
        predicted.append(split)
        (split.parent / "list").mkdir(parents=True, exist_ok=True)
        (split.parent / "list" / f"{split.name}.lst").write_text("")
        return types.SimpleNamespace(returncode=0)

    def train(command, workdir):
        commands.setdefault(workdir.name, []).append(command)
        return types.SimpleNamespace(miou=0.5)

    monkeypatch.setattr(half_labels.subprocess, "run", label)
    monkeypatch.setattr(half_labels.sweep, "train", train)
    monkeypatch.setattr(half_labels.sweep, "format_table", lambda rows, results: "")
    monkeypatch.setattr(half_labels, "hide_labels", lambda root, out: 10)
    words = ["half_labels.py", "--root", str(tmp_path / "camvid"), "--out", str(tmp_path)]
    for confidence, steps in (("0.9", "1"), ("0.8", "1"), ("0.9", "1"), ("0.9", "2")):
        monkeypatch.setattr(sys, "argv", [*words, "--min-confidence", confidence, "--steps", steps])
        half_labels.main()
    assert len({path.name for path in predicted}) == len(predicted) == 3
    mixed = commands["half of the labels and pseudo-labels above 0.9"]
    assert mixed[0] == mixed[1] != mixed[2]
    for command, path in zip((mixed[0], mixed[2]), (predicted[0], predicted[2]), strict=True):
        assert f"--config.data.train_split=train+{path.name}" in shlex.split(command)
    # The command changes with the recipe, so `sweep.train` does not reuse a run of another one.
    assert all(re.search(r" # [0-9a-f]{12}$", command) for each in commands.values() for command in each)
