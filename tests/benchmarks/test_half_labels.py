import pathlib
import shlex
import sys
import types

import half_labels
import numpy as np
from PIL import Image

from deeplab_jax.data.find import find_samples


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


def test_another_probability_makes_another_split_and_another_run(tmp_path, monkeypatch):
    calls, runs = [], {}

    def label(words, **_):
        calls.append(pathlib.Path(words[words.index("--out") + 1]))
        (calls[-1].parent / "list").mkdir(parents=True, exist_ok=True)
        (calls[-1].parent / "list" / f"{calls[-1].name}.lst").write_text("")
        return types.SimpleNamespace(returncode=0)

    def train(command, workdir):
        assert runs.setdefault(workdir, command) == command  # a run folder holds one run
        return types.SimpleNamespace(miou=0.5)

    monkeypatch.setattr(half_labels.subprocess, "run", label)
    monkeypatch.setattr(half_labels.sweep, "train", train)
    monkeypatch.setattr(half_labels.sweep, "format_table", lambda rows, results: "")
    monkeypatch.setattr(half_labels, "hide_labels", lambda root, out: 10)
    for confidence in ("0.9", "0.8", "0.9"):
        words = [
            "half_labels.py",
            "--root",
            tmp_path / "camvid",
            "--out",
            tmp_path,
            "--min-confidence",
            confidence,
            "--steps",
            1,
        ]
        monkeypatch.setattr(sys, "argv", [str(word) for word in words])
        half_labels.main()
    assert [path.name for path in calls] == ["pseudo_0.9", "pseudo_0.8"]
    splits = [word for command in runs.values() for word in shlex.split(command) if "train_split" in word]
    assert splits == [f"--config.data.train_split=train+{path.name}" for path in calls]
    assert len(runs) == 4
