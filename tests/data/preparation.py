"""A small data set, and what the tests of `data prepare` do with it."""

import io
import re

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from deeplab_jax.config import DataConfig
from deeplab_jax.data import prepare as prepare_module
from deeplab_jax.data.find import find_split
from deeplab_jax.data.prepare import prepare
from deeplab_jax.data.samples import read_sample
from deeplab_jax.runtime.work_shard import EVERYTHING

NUM_SAMPLES = 7


@pytest.fixture(autouse=True)
def use_three_samples_per_shard(monkeypatch):
    monkeypatch.setattr(prepare_module, "SHARD_SAMPLES", 3)


def write_list(root, split="train", order=range(NUM_SAMPLES)):
    (root / "list").mkdir(exist_ok=True)
    (root / "list" / f"{split}.lst").write_text("".join(f"{k}.png\tl{k}.png\n" for k in order))


def draw(root, k, seed=0):
    rng = np.random.default_rng([seed, k])
    Image.fromarray(rng.integers(0, 256, (8, 12, 3), np.uint8)).save(root / f"{k}.png")
    Image.fromarray(rng.integers(0, 3, (8, 12), np.uint8)).save(root / f"l{k}.png")


@pytest.fixture
def root(tmp_path):
    """Return a data set with seven training samples, two of which also form the validation split."""
    root = tmp_path / "set"
    root.mkdir()
    for k in range(NUM_SAMPLES):
        draw(root, k)
    write_list(root)
    write_list(root, "val", (5, 6))
    return root


@pytest.fixture
def out(tmp_path):
    return tmp_path / "records"


def run(root, out, splits=("train",), threads=0, label_kind="auto", share=EVERYTHING):
    """Prepare records and return the printed text."""
    console = Console(file=io.StringIO(), width=200)
    prepare(DataConfig(root=str(root), threads=threads, label_kind=label_kind), str(out), splits, console, share)
    return console.file.getvalue()


def read_files(out):
    """Return a dict mapping each file name, except the manifest, to (contents, inode)."""
    return {path.name: (path.read_bytes(), path.stat().st_ino) for path in out.iterdir() if path.name != "records.json"}


def list_names(out):
    """Return the sorted shard and sidecar file names, without the checksum digits."""
    return sorted(re.sub(r"-[0-9a-f]{8}\.bin", ".bin", name) for name in read_files(out))


def assert_holds(out, root, split="train"):
    records, files = (find_split(DataConfig(root=str(folder)), split) for folder in (out, root))
    assert records.images == files.images
    for i in range(len(files)):
        for a, b in zip(read_sample(records, i), read_sample(files, i), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.fixture
def decoded(monkeypatch):
    """Return a list to which the position of every decoded sample is appended."""
    positions = []
    decode = prepare_module._decode

    def record_positions(samples, rows, threads):
        for i, sample in zip(rows, decode(samples, rows, threads), strict=True):
            positions.append(i)
            yield sample

    monkeypatch.setattr(prepare_module, "_decode", record_positions)
    return positions


class Killed(BaseException):
    """An exception that no handler catches, which simulates a killed process."""


def kill_at(monkeypatch, shard):
    """Abort the run at the first sample in a shard."""
    make_record = prepare_module._make_record

    def make_record_or_die(samples, i, *rest):
        if i == shard * 3:
            raise Killed
        return make_record(samples, i, *rest)

    monkeypatch.setattr(prepare_module, "_make_record", make_record_or_die)


def swap_palettes(root, rows=(5,)):
    """Give the masks a palette, in which the masks in `rows` have the colours of two ids swapped."""
    colors = np.uint8([[0, 0, 0], [128, 0, 0], [0, 128, 0]])
    for k in range(NUM_SAMPLES):
        picture = Image.fromarray(np.asarray(Image.open(root / f"l{k}.png")), "P")
        picture.putpalette(colors[[0, 2, 1] if k in rows else [0, 1, 2]].tobytes())
        picture.save(root / f"l{k}.png")
