"""Every command that takes a checkpoint or a weights file, with every kind of path that users give it."""

import errno
import os
import pathlib
import pickle
import re
import shutil
import zipfile

import numpy as np
import pytest
from conftest import load_tiny_recipe, run_cli
from etils import epath
from PIL import Image
from rich.console import Console
from safetensors.numpy import save_file

import deeplab_jax as dl
from deeplab_jax.checkpoints import paths
from deeplab_jax.checkpoints.paths import resolve
from deeplab_jax.checkpoints.store import restore_model, save_model
from deeplab_jax.commands.evaluate import score_checkpoint
from deeplab_jax.commands.flags import load_recipe, require_workdir
from deeplab_jax.errors import CheckpointError, ConfigError, DataError, DeeplabError
from deeplab_jax.weights.transfer import pretrained_variables

# ml_collections uses a deprecated function to load recipes.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


def test_a_run_that_may_not_be_read_is_one_line(tmp_path, monkeypatch):
    def refuse(path, *args):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(paths, "find_steps", refuse)
    with pytest.raises(CheckpointError, match=r"^`checkpoint` \(='.*run'\) cannot be read \(Permission denied: .*run\)\. Ask"):
        resolve(str(tmp_path / "run"))
    with pytest.raises(CheckpointError, match=r"^.*tmp.* cannot be read \(Permission denied: "):
        paths.find_weights(epath.Path(tmp_path))


def test_a_step_in_a_folder_that_may_not_be_read_is_not_said_to_be_missing(tmp_path, monkeypatch):
    stat = os.stat

    def refuse(path, *args, **kwargs):
        if "private" in str(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return stat(path, *args, **kwargs)

    monkeypatch.setattr(os, "stat", refuse)
    with pytest.raises(CheckpointError, match=r"private/checkpoints/4'\) cannot be read \(Permission denied\)\. Ask its owner"):
        resolve(str(tmp_path / "private/checkpoints/4"))


@pytest.fixture(scope="module")
def places(stored_run, tmp_path_factory):
    """Return a folder with one path of every kind."""
    folder = tmp_path_factory.mktemp("places")
    shutil.copytree(stored_run, folder / "run")
    shutil.copytree(stored_run / "checkpoints" / "4", folder / "moved" / "4")
    shutil.copytree(stored_run / "checkpoints" / "4", folder / "renamed")
    save_model(str(folder / "imported"), dl.load(stored_run).config, restore_model(str(stored_run)))
    (folder / "runs").mkdir()
    shutil.copytree(stored_run, folder / "runs" / "quickstart")
    (folder / "empty").mkdir()
    (folder / "unfinished" / "checkpoints").mkdir(parents=True)
    (folder / "data" / "leftImg8bit").mkdir(parents=True)
    (folder / "photos").mkdir()
    Image.new("RGB", (8, 8)).save(folder / "photos" / "a.png")
    (folder / "other" / "notes").mkdir(parents=True)
    (folder / "repository" / "package" / "checkpoints").mkdir(parents=True)
    (folder / "weights").mkdir()
    save_file({"x": np.zeros(1, np.float32)}, folder / "weights" / "net.safetensors")
    save_file({"x": np.zeros(1, np.float32)}, folder / "no_suffix")
    (folder / "net.pth").write_bytes(pickle.dumps({"x": 1}, protocol=2))
    make_zip(folder / "net.pt", "net/data.pkl")
    make_zip(folder / "net.dl", "program.bin", "metadata.json")
    make_zip(folder / "run.zip", "checkpoints/4/metrics")
    (folder / "net.onnx").write_bytes(b"\x08\x08")
    (folder / "recipe.py").write_text("def get_config(): ...")
    (folder / "notes.txt").write_text("notes")
    return folder


def make_zip(path, *names):
    with zipfile.ZipFile(path, "w") as file:
        for name in names:
            file.writestr(name, "x")


ACCEPTED = ("run", "run/best", "run/latest", "run/checkpoints", "run/checkpoints/4", "run/checkpoints/best", "moved", "moved/4")
ACCEPTED += ("renamed", "imported", "runs/quickstart/")

REFUSED = {
    "run/checkpoints/4/model": r"is a part of the checkpoint \S+/run/checkpoints/4\. Give that folder\.",
    "run/checkpoints/9": r"does not exist\. The checkpoints in \S+/run/checkpoints are 4\.",
    "runs": r"is not a run, but contains runs\. Give one of them: \S+/runs/quickstart\.",
    "empty": r"is an empty folder\. Give ",
    "empty/none": r"does not exist\. The folder \S+/empty is empty\.",
    "unfinished": r"is a run without a complete checkpoint\. Train it until its first save\. Give ",
    "data": r"is a data set, for --config\.data\.root\. Give ",
    "photos": r"is a data set, for --config\.data\.root\. Give ",
    "photos/a.png": r"is an image or a video, for `deeplab-jax predict`\. Give ",
    "other": r"is a folder without checkpoints\. Give ",
    "repository": r"is a folder without checkpoints\. Give ",  # `checkpoints` is also the name of our package
    "net.dl": r"is an exported network, for `deeplab_jax\.load_exported`\. Give ",
    "net.onnx": r"is an ONNX file, for an ONNX runtime\. Give ",
    "run.zip": r"is an archive, which must be unpacked first\. Give ",
    "recipe.py": r"is a Python file\. Recipes are for --config\. Give ",
    "notes.txt": r"is a file, but not a weights file or an exported network\. Give ",
}
MISTYPED = {
    "run/bset": r"does not exist\. Did you mean \S+/run/best\?",
    "photo/a.png": r"does not exist\. The folder \S+ contains ",  # photos/a.png is no checkpoint
    "netdl": r"does not exist\. The folder \S+ contains ",
    "nett": r"does not exist\. The folder \S+ contains ",
    "net2.pth": r"does not exist\. Did you mean \S+/net\.pth\?",
    "weigths": r"does not exist\. Did you mean \S+/weights\?",
    "dta": r"does not exist\. The folder \S+ contains ",
    "runs/quikstart": r"does not exist\. Did you mean \S+/runs/quickstart\?",
    "rns/quickstart": r"does not exist\. Did you mean \S+/runs/quickstart\?",
}
WEIGHTS = {
    "weights": r"contains weights files, but no checkpoint\. Import one with .*: \S+/weights/net\.safetensors\.",
    "weights/net.safetensors": r"is a weights file, for `deeplab-jax weights import \S+net\.safetensors --out DIR` and for ",
    "net.pth": r"is a weights file, for `deeplab-jax weights import ",
    "net.pt": r"is a weights file, for `deeplab-jax weights import ",
    "no_suffix": r"is a weights file, for `deeplab-jax weights import ",
    "hf:timm/resnet50.tv_in1k": r"names weights on the Hugging Face hub, for `deeplab-jax weights import hf:timm/resnet50\.tv",
    "https://example.com/net.pth": r"is a web address\. Download the file first\. Give ",
}
# Commands that take a checkpoint, as functions of the path. Each one must fail before it reads data or compiles anything.
COMMANDS = {
    "predict": lambda path, folder: ["predict", folder / "photos", "--checkpoint", path, "--out", folder / "out"],
    "export": lambda path, folder: ["export", "--checkpoint", path, "--format", "stablehlo", "--out", folder / "out.dl"],
    "report": lambda path, folder: ["report", path, "--out", folder / "out.html"],
    "weights export": lambda path, folder: [
        "weights",
        "export",
        path,
        "--to",
        "torchvision",
        "--out",
        folder / "a.safetensors",
    ],
}
FUNCTIONS = {
    "load": dl.load,
    "eval.py": lambda path: score_checkpoint(load_tiny_recipe("nowhere"), path, None, None, Console(quiet=True)),
    "configs/stored.py": lambda path: load_recipe(f"{CONFIGS / 'stored.py'}:{path}"),
}


def locate(places, name):
    return name if ":" in name else f"{places}/{name}"


@pytest.mark.parametrize("name", ACCEPTED)
def test_every_spelling_of_a_checkpoint_is_accepted(places, name):
    step = resolve(f"{places}/{name}")
    assert step.name == {"renamed": "renamed", "imported": "0"}.get(name, "4")
    assert "classifier" in restore_model(f"{places}/{name}")["params"]


def test_path_objects_and_the_home_folder_are_accepted(places, monkeypatch):
    monkeypatch.setenv("HOME", str(places))
    assert resolve("~/run") == resolve(places / "run") == resolve(str(places / "run"))


@pytest.mark.parametrize("value", ["", None, 3, b"run"])
def test_a_value_that_is_not_a_path_is_refused(value):
    with pytest.raises(CheckpointError, match=r"^`checkpoint` \(=.*\) is not a path\. Give a run folder"):
        dl.load(value)


@pytest.mark.parametrize(("name", "message"), (REFUSED | MISTYPED | WEIGHTS).items())
def test_commands_say_what_they_were_given(places, name, message, monkeypatch, capsys):
    for make in COMMANDS.values():
        code, output = run_cli(monkeypatch, capsys, *make(locate(places, name), places))
        assert code == 2
        assert_is_one_line(output, rf"error: `checkpoint` \(='[^']*'\) {message}")
    for call in FUNCTIONS.values():
        with pytest.raises(DeeplabError) as caught:
            call(locate(places, name))
        assert_is_one_line(str(caught.value), rf"`checkpoint` \(='[^']*'\) {message}")


def assert_is_one_line(text, pattern):
    assert re.match(pattern, text), text
    assert text.count("\n") <= 1


CHECKPOINT = "is a checkpoint, for --checkpoint, `deeplab_jax.load`, `deeplab-jax report` and --config.model.pretrained. Give "
CHECKPOINTS = dict.fromkeys(ACCEPTED, re.escape(CHECKPOINT))
UNREADABLE = {"notes.txt": ".*"}  # tests/weights covers files that are not recognised


@pytest.mark.parametrize(("name", "message"), (CHECKPOINTS | REFUSED | MISTYPED | UNREADABLE).items())
def test_weights_import_says_what_it_was_given(places, name, message, monkeypatch, capsys):
    code, output = run_cli(monkeypatch, capsys, "weights", "import", f"{places}/{name}", "--out", places / "out")
    assert code == 2
    assert_is_one_line(output, rf"error: `[^`]*` {message}")


@pytest.mark.parametrize(("name", "message"), (REFUSED | MISTYPED | UNREADABLE).items())
def test_pretrained_says_what_it_was_given(places, name, message):
    config = load_tiny_recipe("nowhere", f"model.pretrained={places}/{name}")
    with pytest.raises(DeeplabError) as caught:
        pretrained_variables(config)
    assert_is_one_line(str(caught.value), rf".*{message}")


@pytest.mark.parametrize("name", ACCEPTED)
def test_pretrained_accepts_every_spelling_of_a_checkpoint(places, name):
    network = ("model.backbone=resnet18", "model.atrous_rates=(6,12,18)")
    config = load_tiny_recipe("nowhere", f"model.pretrained={places}/{name}", *network)
    assert "classifier" in pretrained_variables(config, lambda line: None)["params"]


@pytest.mark.parametrize(("name", "message"), (CHECKPOINTS | REFUSED | WEIGHTS).items())
def test_load_exported_says_what_it_was_given(places, name, message):
    with pytest.raises(DataError) as caught:
        dl.load_exported(locate(places, name))
    reason = r"\(.*\)\. Export it again" if name == "net.dl" else rf"because it {message}"
    assert_is_one_line(str(caught.value), f".* cannot be loaded,? {reason}")


def test_load_exported_suggests_only_exported_networks(places):
    with pytest.raises(DataError, match=r"does not exist\. Did you mean \S+/net\.dl\?"):
        dl.load_exported(f"{places}/nett.dl")
    with pytest.raises(DataError, match=r"does not exist\. The folder \S+/runs contains quickstart\."):
        dl.load_exported(f"{places}/runs/quikstart")


@pytest.mark.parametrize(("name", "message"), (REFUSED | MISTYPED | WEIGHTS).items())
def test_verify_says_what_it_was_given(places, name, message, monkeypatch, capsys):
    code, output = run_cli(monkeypatch, capsys, "verify", locate(places, name), "--from", "0", "--steps", "1")
    assert code == 2
    message = r"is a part of the run \S+/run\." if name.startswith("run/checkpoints") else message
    assert_is_one_line(output, ".*" if name == "unfinished" else rf"error: `run` \(='[^']*'\) {message}")


@pytest.mark.parametrize("name", ["run/best", "run/latest", "run/checkpoints", "run/checkpoints/4", "run/checkpoints/4/model"])
def test_a_run_is_not_trained_inside_another_run(places, name):
    with pytest.raises(ConfigError, match=r"^`--workdir` \(=.*\) is a part of the run \S+/run\. Give --workdir=\S+/run to con"):
        require_workdir(f"{places}/{name}")


def test_new_and_existing_runs_are_accepted_as_workdir(places):
    for name in ("run", "unfinished", "new/run", "best", "runs/latest", "empty"):
        assert require_workdir(f"{places}/{name}") == f"{places}/{name}"


def test_a_folder_or_a_near_miss_as_recipe_is_explained(places):
    with pytest.raises(ConfigError, match=r"is a folder\. .* The config of a checkpoint is configs/stored\.py:\S+/run\."):
        load_recipe(f"{places}/run")
    with pytest.raises(ConfigError, match=r"does not exist\. Did you mean \S+/recipe\.py\?"):
        load_recipe(f"{places}/recpie.py")
    with pytest.raises(ConfigError, match=r"No such file or directory"):
        load_recipe(f"{places}/note.txt")


def test_a_scheme_that_cannot_be_read_is_explained():
    with pytest.raises(
        ConfigError, match=r"^`checkpoint` \(='hdfs://bucket/run'\) cannot be used\. .* a URL with gs://, because"
    ):
        dl.load("hdfs://bucket/run")
    with pytest.raises(
        ConfigError, match=r"^`checkpoint` \(='gs:/bucket/run'\) is not a URL\. Did you mean gs://bucket/run\?$"
    ):
        dl.load("gs:/bucket/run")
