"""Test that unreadable training samples are skipped, and that nothing else changes."""

import re
import shutil

import numpy as np
import pytest
from PIL import Image
from test_pipeline import PLAIN, are_equal, batches

from deeplab_jax.config import DataConfig
from deeplab_jax.data import pipeline
from deeplab_jax.data import samples as reading
from deeplab_jax.data.find import find_samples
from deeplab_jax.data.pipeline import train_batches
from deeplab_jax.errors import DataError

NUM_SAMPLES = 7  # not a multiple of the batch size (4), so some batches span two epochs


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    """Return a data set in which all images and labels differ."""
    root = tmp_path_factory.mktemp("intact")
    rng = np.random.default_rng(0)
    (root / "list").mkdir()
    (root / "list" / "train.lst").write_text("".join(f"i{k}.png\tl{k}.png\n" for k in range(NUM_SAMPLES)))
    for k in range(NUM_SAMPLES):
        Image.fromarray(rng.integers(0, 256, (12, 16, 3)).astype(np.uint8)).save(root / f"i{k}.png")
        Image.fromarray(rng.integers(0, 3, (12, 16)).astype(np.uint8)).save(root / f"l{k}.png")
    return find_samples(str(root), "train")


@pytest.fixture(scope="module")
def clean(intact):
    """Return the batches from a run without broken samples."""
    result, messages = read_skipping(intact, allow=1)
    assert messages == []
    return result


@pytest.fixture
def pairs(intact, tmp_path):
    """Return a copy of the `intact` data set, which tests are free to damage."""
    shutil.copytree(intact.root, tmp_path, dirs_exist_ok=True)
    return find_samples(str(tmp_path), "train")


def truncate(root, k):
    path = root / f"i{k}.png"
    path.write_bytes(path.read_bytes()[:-30])


def delete(root, k):
    (root / f"l{k}.png").unlink()


def write_unknown_value(root, k):
    Image.new("L", (16, 12), 77).save(root / f"l{k}.png")


def read_skipping(samples, *, allow, steps=6, **options):
    """Return the batches and the messages about skipped samples."""
    data = DataConfig(batch_size=4, crop_size=(8, 10), max_unreadable=allow)
    messages = []
    result = batches(samples, labels=PLAIN, data=data, steps=steps, on_skip=lambda e: messages.append(str(e)), **options)
    return result, messages


def assert_only_blank(actual, clean, bad):
    assert len(actual) == len(clean)
    for batch, before in zip(actual, clean, strict=True):
        np.testing.assert_array_equal(batch["index"], before["index"])
        out = np.isin(batch["index"], bad)
        np.testing.assert_array_equal(batch["valid"], ~out)
        for name in ("image", "label", "fingerprint"):
            np.testing.assert_array_equal(batch[name][~out], before[name][~out])
        assert (batch["image"][out] == (1, 2, 3)).all()
        assert (batch["label"][out] == 255).all()
        assert (batch["fingerprint"][out] == 0).all()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, r"i2\.png cannot be read"),
        (delete, r"l2\.png cannot be read \(.*No such file"),
        (write_unknown_value, r"l2\.png holds the value 77 \(192 pixels\)"),
    ],
)
def test_an_unreadable_sample_is_skipped_and_nothing_else_changes(pairs, clean, tmp_path, damage, message):
    assert np.concatenate([b["index"] for b in clean]).tolist().count(2) == 3  # once in each of three epochs
    damage(tmp_path, 2)
    actual, messages = read_skipping(pairs, allow=1)
    assert_only_blank(actual, clean, [2])
    assert len(messages) == 1
    assert re.search(message, messages[0])


def test_several_samples_in_one_batch_can_be_skipped(pairs, clean, tmp_path):
    first, second = clean[1]["index"][[0, 3]].tolist()
    truncate(tmp_path, first)
    write_unknown_value(tmp_path, second)
    actual, messages = read_skipping(pairs, allow=2)
    assert_only_blank(actual, clean, [first, second])
    assert len(messages) == 2


@pytest.mark.slow
def test_a_sample_that_disappears_during_a_run_is_skipped(pairs, intact, tmp_path):
    clean, _ = read_skipping(intact, allow=0, steps=60)
    data = DataConfig(batch_size=4, crop_size=(8, 10), max_unreadable=1, threads=2)
    messages = []
    run = train_batches(pairs, PLAIN, data, (1, 2, 3), seed=5, start_step=0, steps=60, on_skip=messages.append)
    before = [next(run) for _ in range(4)]
    delete(tmp_path, 3)
    after = list(run)
    assert_only_blank(before, clean[:4], [])
    # Batches prefetched before the deletion might still contain the sample.
    assert_only_blank(after[-40:], clean[-40:], [3])
    assert len(messages) == 1


@pytest.mark.slow
def test_starting_later_with_broken_samples_gives_the_batches_of_an_uninterrupted_run(pairs, clean, tmp_path):
    early = clean[0]["index"][1].item()
    late = next(i for i in clean[4]["index"].tolist() if i != early)
    truncate(tmp_path, early)
    delete(tmp_path, late)
    run, messages = read_skipping(pairs, allow=2)
    assert_only_blank(run, clean, [early, late])
    for start in (2, 4):
        later, later_messages = read_skipping(pairs, allow=2, start_step=start)
        met = {early, late} & set(np.concatenate([b["index"] for b in clean[start:]]).tolist())
        assert late in met
        assert len(later_messages) == len(met)
        assert set(later_messages) <= set(messages)
        assert all(are_equal(a, b) for a, b in zip(later, run[start:], strict=True))


@pytest.mark.slow
def test_each_host_skips_its_own_unreadable_samples(pairs, clean, tmp_path):
    bad = clean[0]["index"][3].item()
    truncate(tmp_path, bad)
    (global_batch,), _ = read_skipping(pairs, allow=1, steps=1)
    assert_only_blank([global_batch], clean[:1], [bad])
    (first,), first_messages = read_skipping(pairs, allow=0, steps=1, process_index=0, process_count=2)
    (second,), second_messages = read_skipping(pairs, allow=1, steps=1, process_index=1, process_count=2)
    assert are_equal(global_batch, {k: np.concatenate([first[k], second[k]]) for k in global_batch})
    assert first_messages == []
    assert [f"i{bad}.png" in message for message in second_messages] == [True]
    with pytest.raises(DataError, match=rf"i{bad}\.png cannot be read"):
        read_skipping(pairs, allow=0, steps=1, process_index=1, process_count=2)


@pytest.mark.slow
def test_one_broken_sample_too_many_ends_the_run(pairs, tmp_path):
    for k in (0, 3, 6):
        write_unknown_value(tmp_path, k)
    _, messages = read_skipping(pairs, allow=3)
    assert len(messages) == 3
    last = re.search(r"l\d\.png", messages[2])[0]
    with pytest.raises(DataError, match=rf"{last} holds .* This is one more .* than data\.max_unreadable \(=2\) allows\.$"):
        read_skipping(pairs, allow=2)


def test_no_broken_sample_is_skipped_by_default(pairs, tmp_path):
    assert DataConfig().max_unreadable == 0
    write_unknown_value(tmp_path, 4)
    with pytest.raises(DataError) as caught:
        read_skipping(pairs, allow=0)
    assert str(caught.value) == (
        f"{tmp_path / 'l4.png'} holds the value 77 (192 pixels), which the label set does not define for labelIds labels. "
        "Fix the file, or add the values to the label set (to ignored_ids if they have no class)."
    )


def test_a_file_that_is_readable_when_retried_is_not_skipped(pairs, clean, tmp_path, monkeypatch, caplog):
    contents = (tmp_path / "i1.png").read_bytes()
    truncate(tmp_path, 1)

    def repair_and_diagnose(*arguments):
        (tmp_path / "i1.png").write_bytes(contents)
        return reading.diagnose(*arguments)

    monkeypatch.setattr(pipeline, "diagnose", repair_and_diagnose)
    repaired, messages = read_skipping(pairs, allow=3)
    assert all(are_equal(a, b) for a, b in zip(repaired, clean, strict=True))
    assert messages == []
    assert [record.getMessage().partition(" (")[0] for record in caplog.records] == [
        "Reading i5.png, i0.png, i6.png, i1.png failed"
    ]


@pytest.mark.slow
def test_skipped_rows_also_follow_the_layout(pairs, tmp_path):
    delete(tmp_path, 2)
    nhwc, _ = read_skipping(pairs, allow=1)
    nchw, _ = read_skipping(pairs, allow=1, layout="NCHW")
    for a, b in zip(nhwc, nchw, strict=True):
        assert are_equal(a, b | {"image": b["image"].transpose(0, 2, 3, 1)})
