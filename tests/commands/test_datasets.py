"""Tests for locating a run's data set."""

import dataclasses
import hashlib
import io
import json

import numpy as np
import pytest
from conftest import random_variables, tiny_config
from PIL import Image
from rich.console import Console

from deeplab_jax.commands import datasets
from deeplab_jax.commands.datasets import list_batch_kinds, locate_data, open_evaluation_set, open_training_data
from deeplab_jax.errors import ConfigError
from deeplab_jax.evaluation.evaluate import evaluate
from deeplab_jax.evaluation.inference import evaluation_model
from deeplab_jax.labels import LabelSet
from deeplab_jax.runtime import hosts


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


@pytest.mark.parametrize(("mix", "steps"), [((), 9), ((1, 1), 12), ((1, 3), 24)])
def test_epochs_of_mixed_splits_are_passes_over_the_first_one(street_scenes, mix, steps):
    config = tiny_config(street_scenes)
    config.data.train_split, config.data.mix = "train+val", mix  # 6 and 3 images in batches of 4
    config.train.steps, config.train.epochs, config.train.evaluate = 0, 4.0, False
    lines = []
    data, total = open_training_data(config, lines.append)
    assert (total, data.epoch_size) == (steps, 6 if mix else 9)
    counts = {
        (1, 1): "Each batch has 2 samples from train (6) and 2 from val (3).",
        (1, 3): "Each batch has 1 sample from train (6) and 3 from val (3).",
    }
    assert not mix or counts[mix] in lines[-1]


@pytest.mark.parametrize("mix", [(), (1, 1)])
def test_a_sample_in_another_of_the_mixed_splits_changes_the_digest(tmp_path, mix):
    (tmp_path / "list").mkdir()
    for stem in "abcd":
        Image.new("L", (2, 2)).save(tmp_path / f"{stem}.png")
    config = tiny_config(tmp_path)
    config.data.train_split, config.data.mix, config.train.evaluate = "train+pseudo", mix, False
    digests = []
    for parts in ("ab", "cd"), ("a", "bcd"):
        for split, stems in zip(("train", "pseudo"), parts, strict=True):
            (tmp_path / "list" / f"{split}.lst").write_text("".join(f"{stem}.png\t{stem}.png\n" for stem in stems))
        digests.append(open_training_data(config, lambda line: None)[0].digest)
    names = tuple(f"{stem}.png" for stem in "abcd")
    stored = hashlib.sha256(json.dumps(["labelIds", names, names]).encode()).hexdigest()  # without a ratio, as in version 0.1
    assert [digest == stored for digest in digests] == [not mix] * 2
    assert (digests[0] == digests[1]) == (not mix)


@pytest.mark.parametrize(("train", "val", "count"), [("train+val", "val", 3), ("train", "val", 0), ("val", "val", 0)])
def test_images_that_are_both_trained_on_and_scored_are_reported(street_scenes, train, val, count):
    config = tiny_config(street_scenes)
    config.data.train_split, config.eval.split = train, val
    lines = []
    open_training_data(config, lines.append)
    warnings = [line for line in lines if line.startswith("WARNING") and "are also in" in line]
    assert len(warnings) == bool(count)
    assert all(line.startswith("WARNING: 3 of the 3 images in val are also in train+val, such as left") for line in warnings)


@pytest.mark.parametrize("kind", ["labelIds", "color"])
def test_palettes_that_differ_between_training_and_validation_are_reported(tmp_path, kind):
    red, green = (200, 0, 0), (0, 200, 0)
    for split, colors in (("train", (red, green)), ("val", (green, red))):
        for folder in ("input", "target"):
            (tmp_path / folder / split).mkdir(parents=True)
        Image.new("RGB", (8, 4)).save(tmp_path / "input" / split / "a.png")
        mask = Image.fromarray(np.repeat(np.uint8([[0, 1]]), 4, axis=1), "P").resize((8, 4), Image.Resampling.NEAREST)
        mask.putpalette([part for color in colors for part in color])
        mask.save(tmp_path / "target" / split / "a.png")
    config = tiny_config(tmp_path, labels=LabelSet("two", ("red", "green"), (red, green)))
    config.data.label_kind = kind
    lines = []
    open_training_data(config, lines.append)
    warnings = [line for line in lines if line.startswith("WARNING: The palettes of the masks differ. In target/train/a.png")]
    assert len(warnings) == (kind == "labelIds")
    assert all("but in target/val/a.png it is (0, 200, 0)" in line for line in warnings)


def test_a_missing_or_wrong_root_is_reported(tmp_path):
    with pytest.raises(ConfigError, match="Give the folder with --root"):
        locate_data(tiny_config(), None)
    with pytest.raises(ConfigError, match=r"`--root` \(='.*nowhere'\) is not a folder"):
        locate_data(tiny_config("there"), str(tmp_path / "nowhere"))


@pytest.mark.slow
def test_each_program_of_an_evaluation_is_compiled_once(tmp_path, monkeypatch):
    sizes = [(60, 33), (64, 20), (30, 300), (50, 50), (30, 310)]
    for i, size in enumerate(sizes):
        (tmp_path / "input").mkdir(exist_ok=True)
        Image.fromarray(np.full((*size, 3), i, np.uint8)).save(tmp_path / "input" / f"{i}.png")
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "val.lst").write_text("".join(f"input/{i}.png\n" for i in range(5)))
    config = tiny_config(tmp_path)
    config.mesh.data, config.eval.batch_size = 1, 2
    monkeypatch.setattr(datasets, "estimate_compile_pixels", lambda: 10**4)
    samples, batches = open_evaluation_set(config, need_labels=False)
    compiled, shapes = [], []
    compile_together = hosts.compile_together

    def compile_and_record(jitted, variables, batch, **options):
        compiled.append(batch["image"].shape)
        return compile_together(jitted, variables, batch, **options)

    monkeypatch.setattr(hosts, "compile_together", compile_and_record)
    kinds, console = list_batch_kinds(config, samples), Console(file=io.StringIO())
    variables = random_variables(evaluation_model(config))
    visitors = [lambda each: shapes.append((each.index, each.prediction.shape))]
    evaluate(config, variables, batches(), 5, visitors, console, kinds=kinds)
    assert sorted(compiled) == [(2, 32, 320, 3), (2, 64, 64, 3)]
    assert sorted(shapes) == list(enumerate(sizes))
