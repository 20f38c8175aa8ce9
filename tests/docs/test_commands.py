"""Test that the commands and Python snippets in the documentation work.

The short tests parse every command with the real parsers and run the quick commands. The long test runs each page from top to
bottom, as a reader would, on tiny data with narrow networks.
"""

import ast
import dataclasses
import io
import pathlib
import re
import shlex
import shutil
import sys
import types

import numpy as np
import pytest
from conftest import ROOT, make_once
from PIL import Image
from rich.console import Console

import deeplab_jax as dl
from deeplab_jax.checkpoints.store import save_model
from deeplab_jax.commands import main as cli
from deeplab_jax.commands.evaluate import score_checkpoint
from deeplab_jax.commands.flags import load_recipe
from deeplab_jax.commands.reference import list_flags
from deeplab_jax.commands.train import train
from deeplab_jax.config import Config, OptimConfig
from deeplab_jax.labels import CAMVID, LabelSet
from deeplab_jax.labels.files import write_labels
from deeplab_jax.predict.video import write_video
from deeplab_jax.weights import names
from deeplab_jax.weights.convert import variable_shapes
from deeplab_jax.weights.transfer import export_weights

# ml_collections uses a deprecated function to load recipes.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

PAGES = [ROOT / "README.md", *sorted(path for path in (ROOT / "docs").rglob("*.md") if "api" not in path.parts)]

# Replacements for placeholders and example files in the pages. The new paths are relative to the `workspace` folder.
PLACEHOLDERS = {
    "/data/cityscapes": "cityscapes",
    "CITYSCAPES": "cityscapes",
    "/ssd/cityscapes-records": "records",
    "/ssd/records": "records",
    "CAMVID": "camvid",
    "ROOT": "scenes",
    "RECIPE": "configs/quickstart.py",
    "RUN": "runs/new",
    "RECORDS": "records",
    "DIR": "tfds",
    "SET": "voc",
    "NAME": "a100",
    "N": "4",
    "8": "4",  # conftest.py makes four devices
    "64": "4",
    "2x4": "2x2",
    "8000": "2",  # the number of steps in the tiny run
    "1000": "2",
    "hf:timm/resnet101.tv_in1k": "",
    "deeplabv3_r50-d8_512x1024_80k_cityscapes_20200606_113404-b92cfdd4.pth": "mmseg.safetensors",
    "deeplabv3_resnet101_coco-586e9e4e.pth": "mmseg.safetensors",
    "my_smp_network/": "mmseg.safetensors",
    "r50.pth": "r50.safetensors",  # .pth needs PyTorch
    "finetuned.pth": "finetuned.safetensors",
}

# The first words of each command that is never run, and the reason.
NOT_RUN = (
    ("git clone", "needs the network"),
    ("pip install", "needs the network"),
    ("make", "creates a virtual environment; the other tests cover its commands"),
    ("python3 -m venv", "creates a virtual environment"),
    ("python -m venv", "creates a virtual environment"),
    ("source", "changes the shell"),
    ("cd", "changes the shell; its sha256sum is tested in checkpoints/test_store.py"),
    ("tensorboard", "not a dependency of the package"),
    ("tfds build", "downloads a data set"),
    ("sbatch", "needs SLURM; cluster/test_slurm.py runs it"),
    ("podman", "needs a container engine"),
    ("kubectl", "needs Kubernetes; cluster/test_kubernetes.py checks the manifest"),
    ("python examples/ray_train.py", "needs Ray; cluster/test_ray.py runs it"),
    ("python examples/ray_tune.py", "needs Ray; cluster/test_ray.py runs it"),
    ("python examples/ray_predict.py", "needs Ray; cluster/test_ray.py runs it"),
    ("mpirun", "needs Open MPI; runtime/test_hosts.py runs it where it is installed"),
    ("gcloud", "needs a TPU pod"),
)

# Part of each command line that is parsed but not run, and the reason.
ONLY_PARSED = (
    ("pypi:", "needs the extra lite0"),
    ("model.pdparams", "needs a file in PaddleSeg's format; weights/test_paddle.py writes one"),
    ("train.writers", "needs the extra wandb; training/writers/test_trackers.py trains with it"),
    ("tfds:", "needs a data set that TFDS has built; data/test_tfds.py builds one"),
    ("--as-labels", "an untrained network is not sure of any pixel; commands/test_predict_as_labels.py runs it"),
    ("data.mix", "needs pseudo-labels; commands/test_predict_as_labels.py and data/test_order.py use it"),
    ("deeplab-jax data import", "needs an export; commands/test_import_annotations.py writes one"),
    ("deeplab-jax demo", "serves until it is interrupted; pages/test_demo.py opens it in a browser"),
)

# Pages that are not run from top to bottom, and the reason.
NOT_RUN_PAGES = {
    "buckets": "needs a bucket; test_buckets.py trains in an emulator",
    "clusters": "needs several hosts; runtime/test_hosts.py starts several processes",
    "train-from-python": "trains for minutes, and needs Optuna; commands/test_train.py calls dl.train",
}

# Commands that take less than a second.
QUICK = ("data synthetic", "data labels", "data check", "data prepare", "plan")

# Fields that shorten training to seconds. The page's own settings take precedence.
TINY_RUN = {
    "model.backbone": "resnet18",
    "model.dilate_conv2": False,  # as in mmsegmentation, so that `weights export` works
    "model.width": 8,
    "model.aspp_width": 8,
    "model.dtype": "float32",
    "model.pretrained": "",
    "data.batch_size": 4,
    "data.crop_size": (32, 64),
    "data.root": "cityscapes",
    "train.steps": 4,
    "train.epochs": 0.0,
    "train.save_every": 2,
    "train.eval_every": 4,
    "eval.batch_size": 4,
}


TINY_PLAN = ("model.backbone=four_blocks", "model.width=8", "data.crop_size=(32,64)", "--no-compile")


@dataclasses.dataclass
class Block:
    """A fenced code block. `commands` are its command lines, with placeholders replaced and environment variables removed."""

    language: str
    text: str

    @property
    def commands(self):
        if self.language not in ("", "bash"):
            return []
        lines = self.text.replace("\\\n", " ").splitlines()
        words = [shlex.split(line, comments=True) for line in lines if not line.startswith("#")]
        return [list(strip_environment(map(replace_placeholders, each))) for each in words if each]


def read_blocks(page):
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [Block(language, text) for language, text in fences]


def replace_placeholders(word):
    names = "|".join(map(re.escape, sorted(PLACEHOLDERS, key=len, reverse=True)))
    return re.sub(rf"(?<![\w./:-])({names})(?![\w.-])|(?<=[=:])({names})(?![\w.-])", lambda m: PLACEHOLDERS[m[0]], word)


def strip_environment(words):
    is_variable = True
    for word in words:
        is_variable = is_variable and bool(re.match(r"[A-Z_]+=", word))
        if not is_variable:
            yield word


def starts_with(words, prefix):
    return words[: len(prefix.split())] == prefix.split()


def is_only_parsed(words):
    return any(part in " ".join(words) for part, _ in ONLY_PARSED)


def parse_program(words):
    """Parse a train.py or eval.py command line. Return the config and the other flags."""
    known = {name for name, _ in list_flags(ast.parse((ROOT / words[1]).read_text()))}
    given = dict(re.fullmatch(r"--([\w.]+)=(.*)", word).groups() for word in words[2:])
    recipe = given.pop("config")
    fields = {name.removeprefix("config."): given.pop(name) for name in [*given] if name.startswith("config.")}
    assert given.keys() <= known, f"{words[1]} does not have all of these flags: {', '.join(given)}"
    config = load_recipe(recipe, [f"{name}={value}" for name, value in fields.items()])
    # TINY_RUN would change a stored config's network, which must match its checkpoint.
    if not recipe.startswith("configs/stored.py"):
        tiny = {name: value for name, value in TINY_RUN.items() if name not in fields}
        if "model.backbone" in fields:
            del tiny["model.dilate_conv2"]
        config = load_recipe(recipe, [*(f"{name}={value}" for name, value in (tiny | fields).items())])
    return config, given


def run(words):
    """Run a command line in this process."""
    if words[0] == "python":
        config, given = parse_program(words)
        console = Console(file=io.StringIO())
        if words[1] == "train.py":
            train(config, given["workdir"], console=console)
        else:
            score_checkpoint(config, given["checkpoint"], given.get("output"), given.get("submission"), console)
        return
    if words[1] == "plan":
        fields = [word for word in words if re.match(r"[a-z]+\.\w+=", word)]  # argparse requires fields to be adjacent
        words = [*words[:2], *fields, *TINY_PLAN, *(word for word in words[2:] if word not in fields)]
    code = 0
    try:
        cli.parse(words[1:])()
    except SystemExit as stop:
        code = stop.code
    assert not code, " ".join(words)


@pytest.fixture(scope="session")
def example_files(street_scenes, tmp_path_factory):
    """Return a folder with the files that the pages assume to exist: data sets, photos and a video."""

    def make(folder):
        folder.mkdir()
        (folder / "configs").symlink_to(ROOT / "configs")
        shutil.copytree(street_scenes, folder / "cityscapes")
        write_images(folder / "scenes", "input/train", "target/train", ("a", "c"))
        write_images(folder / "scenes", "input/val", "target/val", ("b", "d"))
        write_images(folder / "camvid", "train", "trainannot", "abcd")
        write_images(folder / "camvid", "val", "valannot", "ef")
        write_images(folder, "photos", "photo_labels", "a")
        shutil.copy(folder / "photos/a.jpg", folder / "photo.jpg")
        write_images(folder, "more/days", "more_labels", "b")
        with write_video(folder / "drive.mp4", (32, 48), 10) as add:
            add(0.0, np.zeros((32, 48, 3), np.uint8))

    return make_once(tmp_path_factory, "documented", make)


def write_images(folder, images, masks, stems):
    for i, stem in enumerate(stems):
        rng = np.random.default_rng(i)
        for name, shape, high in ((images, (64, 96, 3), 256), (masks, (64, 96), CAMVID.num_classes)):
            path = folder / name / f"{stem}.{'jpg' if name == images else 'png'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            # Blocks of one value, because masks of single pixels would look blended.
            blocks = rng.integers(0, high, (shape[0] // 8, shape[1] // 8, *shape[2:]), np.uint8)
            Image.fromarray(blocks.repeat(8, 0).repeat(8, 1)).save(path)


@pytest.fixture
def workspace(example_files, tmp_path, monkeypatch):
    """Copy `example_files` to a temporary folder and make it the working directory."""
    shutil.copytree(example_files, tmp_path / "workspace", symlinks=True)
    monkeypatch.chdir(tmp_path / "workspace")
    return tmp_path / "workspace"


@pytest.fixture
def stored_configs(workspace):
    """Create the files read by two recipes: a label set for custom.py, and checkpoints without a network for stored.py."""
    write_labels(workspace / "scenes" / "labels.json", LabelSet("scenes", ("a", "b"), ((0, 0, 0), (9, 9, 9))))
    save_model("runs/mine", Config(), {"params": {"x": np.zeros(1)}})
    shutil.copytree("runs/mine", "weights/mmseg_r50")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_exist_and_accept_their_arguments(page, stored_configs):
    for words in (words for block in read_blocks(page) for words in block.commands):
        if words[0] == "deeplab-jax":
            cli.parse(words[1:])
        elif words[:2] in (["python", "train.py"], ["python", "eval.py"]):
            parse_program(words)
        else:
            assert any(starts_with(words, prefix) for prefix, _ in NOT_RUN), f"{words} is neither parsed nor listed in NOT_RUN"


@pytest.mark.slow
def test_quick_commands_run(example_files, tmp_path, monkeypatch):
    """Run every quick command. `run` checks that it succeeds."""
    count = 0
    for page in PAGES:
        commands = [words for block in read_blocks(page) for words in block.commands if not is_only_parsed(words)]
        quick = [words for words in commands if any(starts_with(words, f"deeplab-jax {name}") for name in QUICK)]
        if quick:
            folder = tmp_path / page.stem
            shutil.copytree(example_files, folder, symlinks=True)
            monkeypatch.chdir(folder)
        for words in quick:
            run(words)
            count += 1
    assert count >= len(QUICK)


@pytest.fixture(scope="module")
def trained_files(example_files, plain_convolutions, tmp_path_factory):
    """Return `example_files` plus two trained runs, and mmsegmentation weights for the first run's network."""

    def make(folder):
        shutil.copytree(example_files, folder, symlinks=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            run(["deeplab-jax", "data", "labels", "scenes"])
            for recipe, root, workdir in (
                ("configs/cityscapes_r50_os8.py", "cityscapes", "runs/r50"),
                ("configs/custom_lite0.py:scenes/labels.json", "scenes", "runs/mine"),
            ):
                run(["python", "train.py", f"--config={recipe}", f"--config.data.root={root}", f"--workdir={workdir}"])
            pathlib.Path("scenes/labels.json").rename("labels.json")
            for copy in ("runs/quickstart", "runs/r101"):
                shutil.copytree("runs/r50", copy)
            config = Config(model=dataclasses.replace(dl.load("runs/r50").config.model, pretrained=""))
            variables = {path: np.ones(shape, np.float32) for path, shape in variable_shapes(config).items()}
            save_model("weights/ones", config, names.unflatten(variables))
            export_weights("weights/ones", "mmseg.safetensors", fmt="mmseg")

    return make_once(tmp_path_factory, "trained", make)


PAGES_TO_RUN = [
    page
    for page in PAGES
    if page.stem not in NOT_RUN_PAGES and any(block.commands or block.language == "python" for block in read_blocks(page))
]


def make_opencv():
    """Return a stand-in for OpenCV, whose camera has one frame."""
    frames = iter([(True, np.zeros((64, 96, 3), np.uint8)), (False, None)])
    return types.SimpleNamespace(
        VideoCapture=lambda number: types.SimpleNamespace(read=lambda: next(frames), release=lambda: None),
        cvtColor=lambda frame, code: np.ascontiguousarray(frame[..., ::-1]),
        COLOR_BGR2RGB=4,
        COLOR_RGB2BGR=4,
        imshow=lambda title, image: None,
        waitKey=lambda milliseconds: -1,
    )


@pytest.mark.long
@pytest.mark.parametrize("page", PAGES_TO_RUN, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_runs_from_top_to_bottom(page, trained_files, tmp_path, monkeypatch):
    shutil.copytree(trained_files, tmp_path / "workspace", symlinks=True)
    monkeypatch.chdir(tmp_path / "workspace")
    monkeypatch.setitem(sys.modules, "cv2", make_opencv())
    # The tutorial starts without any runs, whereas other pages use files created by earlier pages.
    if page.stem == "tutorial":
        shutil.rmtree("runs")
    elif "data labels" not in page.read_text():
        shutil.copy("labels.json", "scenes")
    count = 0
    variables = {"dl": dl, "OptimConfig": OptimConfig, "images": np.zeros((1, 3, 64, 96), np.uint8)}
    for block in read_blocks(page):
        if block.language == "python":
            exec(compile(block.text, page.name, "exec"), variables)
            count += 1
        for words in block.commands:
            if words[0] in ("deeplab-jax", "python") and not is_only_parsed(words) and words[1] != "-m":
                run(words)
                count += 1
    assert count
