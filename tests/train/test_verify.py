"""`verify` on a run in this process: it agrees with an honest run and objects to every kind of tampering."""

import dataclasses
import io
import json
import math
import re
import shutil

import pytest
from conftest import tiny_config
from PIL import Image
from rich.console import Console

from deeplab_jax.commands.datasets import training_data, training_set
from deeplab_jax.config import digest_of
from deeplab_jax.errors import CheckpointError, ConfigError
from deeplab_jax.train.loop import train
from deeplab_jax.train.verify import _relative_difference, config_at, verify


@pytest.fixture(scope="module")
def finished(street_scenes, tmp_path_factory):
    """A run of four steps with checkpoints at 2 and 4, and the set that it was trained on."""
    folder = tmp_path_factory.mktemp("verify")
    shutil.copytree(street_scenes, folder / "scenes")
    config = tiny_config(folder / "scenes")
    data, steps = training_data(config, lambda line: None)
    train(config, str(folder / "run"), steps=steps, data=data, console=Console(file=io.StringIO()))
    return folder


@pytest.fixture
def copy(finished, tmp_path):
    """A run to tamper with."""
    shutil.copytree(finished / "run", tmp_path / "run")
    return tmp_path / "run"


def findings(workdir, start=2, steps=2, root=None):
    config, _ = config_at(str(workdir), start)
    if root:
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, root=str(root)))
    data, _ = training_data(config, lambda line: None)
    samples = training_set(config)
    return list(verify(str(workdir), start, steps, data, lambda i: samples.store.fingerprint(samples, i).hex()))


def objections(found):
    return [finding.text for finding in found if finding.agrees is False]


@pytest.mark.parametrize(("start", "steps"), [(2, 2), (0, 3)])
def test_an_honest_run_agrees_to_the_bit(finished, start, steps):
    found = findings(finished / "run", start, steps)
    assert not objections(found)
    texts = [finding.text for finding in found if finding.agrees]
    assert f"step {start}: {'stored ' if start else ''}state agrees" in texts
    assert "images and labels: 6 as the run saw them" in texts
    assert any(text.startswith(f"step {start + 1}: loss") for text in texts)
    last = 4 if start else 2
    assert f"step {last}: state agrees" in texts
    assert f"step {last}: samples agree" in texts


def test_a_changed_image_is_named(finished, tmp_path):
    shutil.copytree(finished / "scenes", tmp_path / "scenes")
    changed = sorted((tmp_path / "scenes" / "leftImg8bit" / "train").rglob("*.png"))[0]
    with Image.open(changed) as picture:
        pixel = picture.getpixel((3, 3))
        picture.putpixel((3, 3), (pixel[0] ^ 1, *pixel[1:]))
        picture.save(changed)
    found = objections(findings(finished / "run", root=tmp_path / "scenes"))
    assert f"1 of 6 changed, {changed.relative_to(tmp_path / 'scenes')} among them" in found[0]


def test_another_list_is_noticed(finished, tmp_path):
    shutil.copytree(finished / "scenes", tmp_path / "scenes")
    listing = tmp_path / "scenes" / "list" / "train.lst"
    first, *rest = listing.read_text().splitlines()
    listing.write_text("\n".join([*rest, first]) + "\n")
    found = objections(findings(finished / "run", root=tmp_path / "scenes"))
    assert "training list: not the one of the run" in found
    assert "step 4: samples differ" in found


def test_a_changed_config_is_noticed(copy):
    path = copy / "run.json"
    path.write_text(path.read_text().replace('"lr": 0.05', '"lr": 0.06'))
    with pytest.raises(CheckpointError, match="not the one its digest was made of: it was changed"):
        findings(copy)


def test_a_forged_config_does_not_give_the_run(copy):
    path = copy / "run.json"
    table = json.loads(path.read_text())
    table["starts"][0]["config"]["optim"]["lr"] = 0.06
    sign(table)
    path.write_text(json.dumps(table))
    found = objections(findings(copy))
    assert any("is not that of run.json" in text for text in found)
    assert "step 4: state differs" in found


def test_any_byte_of_a_checkpoint_is_noticed(copy):
    for path in sorted(path for path in (copy / "checkpoints" / "2").rglob("*") if path.is_file()):
        if path.name == "SHA256SUMS" or not path.stat().st_size:
            continue
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        whole = path.read_bytes()
        path.write_bytes(content)
        try:
            first = next(finding for finding in iter_findings(copy) if finding.text.startswith("files of"))
        finally:
            path.write_bytes(whole)
        assert first.agrees is False
        assert path.name in first.text


def test_the_checkpoint_at_the_end_is_the_one_that_the_replay_arrives_at(copy):
    last = copy / "checkpoints" / "4"
    shutil.rmtree(last)
    shutil.copytree(copy / "checkpoints" / "2", last)  # another state, with checksums that fit
    assert objections(findings(copy)) == ["step 4: stored state differs"]


def sign(table):
    """Makes the digests of a forged receipt right."""
    for row in table["starts"]:
        values = {name: value for name, value in row.items() if "digest" not in name}
        row |= {"config_digest": digest_of(row["config"]), "digest": digest_of(values)}


def iter_findings(workdir):
    config, _ = config_at(str(workdir), 2)
    data, _ = training_data(config, lambda line: None)
    return verify(str(workdir), 2, 2, data, lambda i: "")


def test_other_versions_say_how_far_relative_difference(copy):
    path = copy / "run.json"
    table = json.loads(path.read_text())
    table["starts"][0]["versions"]["jax"] = "0.0.1"
    sign(table)
    path.write_text(json.dumps(table))
    found = findings(copy)
    assert not objections(found)
    assert any("for '0.0.1'" in finding.text for finding in found)
    assert "step 4: parameters 0.0e+00 from the run's, |a - b| / |b| over all of them" in [finding.text for finding in found]

    log = copy / "metrics.jsonl"
    log.write_text(re.sub(r'"loss": [0-9.]+', '"loss": 0.01', log.read_text()))
    assert [text for text in objections(findings(copy)) if text.startswith("step 3: loss")]


def test_numbers_that_are_not_finite_are_compared_with_null():
    assert _relative_difference(math.nan, None) == 0
    assert _relative_difference(1.0, None) == _relative_difference(math.nan, 1.0) == math.inf
    assert _relative_difference(1.5, 1.0) == 0.5


def test_intervals_that_are_not_in_the_run_are_refused(copy, tmp_path):
    with pytest.raises(ConfigError, match="does not fit after step 2 of a run of 4: use 1 to 2"):
        findings(copy, 2, 3)
    with pytest.raises(CheckpointError, match=r"holds no run\.json"):
        config_at(str(tmp_path), 0)
    with pytest.raises(CheckpointError, match="that run has the steps 2, 4"):
        findings(copy, 3, 1)
