"""Test that `verify` accepts an honest run and detects every kind of tampering."""

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

from deeplab_jax.commands.datasets import open_training_data, open_training_set
from deeplab_jax.config import digest_of
from deeplab_jax.errors import CheckpointError, ConfigError
from deeplab_jax.training.loop import train
from deeplab_jax.training.verify import _relative_difference, config_at, verify

pytestmark = pytest.mark.usefixtures("shared_step")


@pytest.fixture(scope="module")
def honest_run(street_scenes, tmp_path_factory, shared_step):
    """Return a folder with a four-step run (checkpoints at 2 and 4) and its training data."""
    folder = tmp_path_factory.mktemp("verify")
    shutil.copytree(street_scenes, folder / "scenes")
    config = tiny_config(folder / "scenes")
    data, steps = open_training_data(config, lambda line: None)
    train(config, str(folder / "run"), steps=steps, data=data, console=Console(file=io.StringIO()))
    return folder


@pytest.fixture
def tampered_run(honest_run, tmp_path):
    """Return a copy of the run to tamper with."""
    shutil.copytree(honest_run / "run", tmp_path / "run")
    return tmp_path / "run"


def collect_findings(workdir, start=2, steps=2, root=None):
    config, _ = config_at(str(workdir), start)
    if root:
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, root=str(root)))
    data, _ = open_training_data(config, lambda line: None)
    samples = open_training_set(config)
    return list(verify(str(workdir), start, steps, data, lambda i: samples.store.fingerprint(samples, i).hex()))


def list_objections(findings):
    return [finding.text for finding in findings if finding.agrees is False]


@pytest.mark.parametrize(("start", "steps"), [pytest.param(2, 2, marks=pytest.mark.slow), (0, 3)])
def test_an_honest_run_agrees_bit_for_bit(honest_run, start, steps):
    findings = collect_findings(honest_run / "run", start, steps)
    assert not list_objections(findings)
    texts = [finding.text for finding in findings if finding.agrees]
    assert f"step {start}: {'stored ' if start else ''}state agrees" in texts
    assert "images and labels: all 6 samples of the run are unchanged" in texts
    assert any(text.startswith(f"step {start + 1}: loss") for text in texts)
    last = 4 if start else 2
    assert f"step {last}: state agrees" in texts
    assert f"step {last}: samples agree" in texts


def test_steps_without_a_recorded_result_are_refused(tampered_run):
    rows = [json.loads(line) for line in (tampered_run / "metrics.jsonl").read_text().splitlines()]
    kept = [json.dumps(row) for row in rows if row["step"] == 4]
    (tampered_run / "metrics.jsonl").write_text("\n".join(kept) + "\n")
    message = (
        r"`--steps` \(=1\) replays only step 3, of which the run recorded no result to compare with\. Its first recorded "
        r"step is 2, and its last is 4\. Use --steps 2 or more\."
    )
    with pytest.raises(ConfigError, match=message):
        collect_findings(tampered_run, 2, 1)


def test_a_run_without_later_results_has_nothing_to_compare(tampered_run):
    (tampered_run / "metrics.jsonl").unlink()
    shutil.rmtree(tampered_run / "checkpoints" / "4")
    receipts = tampered_run / "receipts.jsonl"
    rows = receipts.read_text().splitlines(keepends=True)
    receipts.write_text("".join(row for row in rows if json.loads(row)["step"] != 4))
    with pytest.raises(ConfigError, match=r"Its first recorded step is 2, and its last is 2\. Use a smaller --from\."):
        collect_findings(tampered_run, 2, 2)


def test_a_changed_image_is_named(honest_run, tmp_path):
    shutil.copytree(honest_run / "scenes", tmp_path / "scenes")
    changed = sorted((tmp_path / "scenes" / "leftImg8bit" / "train").rglob("*.png"))[0]
    with Image.open(changed) as picture:
        pixel = picture.getpixel((3, 3))
        picture.putpixel((3, 3), (pixel[0] ^ 1, *pixel[1:]))
        picture.save(changed)
    findings = list_objections(collect_findings(honest_run / "run", root=tmp_path / "scenes"))
    assert f"1 of 6 changed, for example {changed.relative_to(tmp_path / 'scenes')}" in findings[0]


def test_a_different_training_list_is_detected(honest_run, tmp_path):
    shutil.copytree(honest_run / "scenes", tmp_path / "scenes")
    listing = tmp_path / "scenes" / "list" / "train.lst"
    first, *rest = listing.read_text().splitlines()
    listing.write_text("\n".join([*rest, first]) + "\n")
    findings = list_objections(collect_findings(honest_run / "run", root=tmp_path / "scenes"))
    assert "training list: differs from the run" in findings
    assert "step 4: samples differ" in findings


def test_a_changed_config_is_detected(tampered_run):
    path = tampered_run / "run.json"
    path.write_text(path.read_text().replace('"lr": 0.05', '"lr": 0.06'))
    with pytest.raises(CheckpointError, match=r"does not match its digest\. The file was changed"):
        collect_findings(tampered_run)


@pytest.mark.slow
def test_a_forged_config_does_not_reproduce_the_run(tampered_run):
    path = tampered_run / "run.json"
    table = json.loads(path.read_text())
    table["starts"][0]["config"]["optim"]["lr"] = 0.06
    update_digests(table)
    path.write_text(json.dumps(table))
    findings = list_objections(collect_findings(tampered_run))
    assert any("differs from the config in run.json" in text for text in findings)
    assert "step 4: state differs" in findings


@pytest.mark.slow
def test_a_flipped_bit_in_any_checkpoint_file_is_detected(tampered_run):
    for path in sorted(path for path in (tampered_run / "checkpoints" / "2").rglob("*") if path.is_file()):
        if path.name == "SHA256SUMS" or not path.stat().st_size:
            continue
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        original = path.read_bytes()
        path.write_bytes(content)
        try:
            first = next(finding for finding in iterate_findings(tampered_run) if finding.text.startswith("files of"))
        finally:
            path.write_bytes(original)
        assert first.agrees is False
        assert path.name in first.text


def test_a_replaced_checkpoint_does_not_match_the_receipt(tampered_run):
    last = tampered_run / "checkpoints" / "4"
    shutil.rmtree(last)
    shutil.copytree(tampered_run / "checkpoints" / "2", last)  # a different state with matching checksums
    assert list_objections(collect_findings(tampered_run)) == ["step 4: stored state differs"]


def update_digests(table):
    """Make a forged receipt's digests match its contents."""
    for row in table["starts"]:
        values = {name: value for name, value in row.items() if "digest" not in name}
        row |= {"config_digest": digest_of(row["config"]), "digest": digest_of(values)}


def iterate_findings(workdir):
    config, _ = config_at(str(workdir), 2)
    data, _ = open_training_data(config, lambda line: None)
    return verify(str(workdir), 2, 2, data, lambda i: "")


@pytest.mark.slow
def test_different_versions_are_reported_with_relative_differences(tampered_run):
    path = tampered_run / "run.json"
    table = json.loads(path.read_text())
    table["starts"][0]["versions"]["jax"] = "0.0.1"
    update_digests(table)
    path.write_text(json.dumps(table))
    findings = collect_findings(tampered_run)
    assert not list_objections(findings)
    assert any("instead of '0.0.1'" in finding.text for finding in findings)
    assert "step 4: the relative L2 distance between the replayed and the stored parameters is 0.0e+00" in [
        finding.text for finding in findings
    ]

    log = tampered_run / "metrics.jsonl"
    log.write_text(re.sub(r'"loss": [0-9.]+', '"loss": 0.01', log.read_text()))
    assert [text for text in list_objections(collect_findings(tampered_run)) if text.startswith("step 3: loss")]


def test_values_that_are_not_finite_are_compared_with_null():
    assert _relative_difference(math.nan, None) == 0
    assert _relative_difference(1.0, None) == _relative_difference(math.nan, 1.0) == math.inf
    assert _relative_difference(1.5, 1.0) == 0.5


def test_intervals_outside_the_run_are_rejected(tampered_run, tmp_path):
    with pytest.raises(ConfigError, match=r"is out of range from step 2 in a 4-step run\. Use 1 to 2\."):
        collect_findings(tampered_run, 2, 3)
    with pytest.raises(CheckpointError, match=r"does not contain run\.json"):
        config_at(str(tmp_path), 0)


def test_a_step_without_a_checkpoint_is_refused_before_any_sample_is_read(tampered_run):
    data, _ = open_training_data(config_at(str(tampered_run), 3)[0], lambda line: None)
    with pytest.raises(ConfigError, match=r"^`--from` \(=3\) has no checkpoint\. Use one of the steps 0, 2, 4\.$"):
        next(verify(str(tampered_run), 3, 1, data, lambda i: pytest.fail("reads a sample")))
