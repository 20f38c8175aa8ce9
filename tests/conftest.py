"""Four fake CPU devices, strict shapes, and tiny things that several tests share."""

import copy
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys

os.environ["JAX_NUM_CPU_DEVICES"] = "4"
# Compiling is most of the time that the tests take; the processes that they start share the cache.
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(os.path.dirname(__file__), "..", ".pytest_cache", "jax")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"
# A tiny network's step compiles in 12 s instead of 30; what it computes is not the tests' concern to do fast.
os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"

import jax
import numpy as np
import pytest
from filelock import FileLock
from PIL import Image
from rich.console import Console

jax.config.update("jax_numpy_rank_promotion", "raise")

from tiny import tiny_config, tiny_model, tiny_resnet18  # noqa: F401

from deeplab_jax.checkpoints.store import Checkpoints
from deeplab_jax.commands import main as cli
from deeplab_jax.commands.flags import load_recipe
from deeplab_jax.commands.train import train_recipe
from deeplab_jax.models import DeepLabV3, convolution
from deeplab_jax.scenes import dataset as synthetic
from deeplab_jax.train.optimizer import make_optimizer
from deeplab_jax.train.state import init_state, to_trees

ROOT = pathlib.Path(__file__).parent.parent
TINY = ROOT / "tests" / "tiny.py"
CONFIGS = ROOT / "configs"
NEED_A_FILE = ("stored", "custom")
RECIPES = sorted(path for path in CONFIGS.glob("*.py") if path.stem not in NEED_A_FILE)


def make_once(tmp_path_factory, name, make):
    """A folder that all workers share, which `make` fills: the first one that asks makes it."""
    temporary = tmp_path_factory.getbasetemp()
    folder = (temporary.parent if "PYTEST_XDIST_WORKER" in os.environ else temporary) / name
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            make(folder.with_suffix(".part"))
            folder.with_suffix(".part").rename(folder)
    return folder


@pytest.fixture(scope="session")
def street_scenes(tmp_path_factory):
    """A drawn Cityscapes-layout set of 6 training, 3 validation and 2 test scenes of 64x128."""
    return make_once(tmp_path_factory, "scenes", lambda root: synthetic.write(root, train=6, val=3, test=2, size=(64, 128)))


@pytest.fixture(scope="session")
def finished_run(street_scenes, tmp_path_factory):
    """A run that train.py finished, in a folder named as people do: from where they stand."""

    def train(folder):
        folder.mkdir()
        call("train.py", "--workdir=runs/tiny", root=street_scenes, cwd=folder)

    return make_once(tmp_path_factory, "there", train) / "runs" / "tiny"


@pytest.fixture(scope="module")
def plain_convolutions():
    """XLA's own convolution everywhere, which compiles faster: for tests that are about what stands around the network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convolution, "_fastest_form", lambda *shapes: "xla")
        yield


@pytest.fixture
def official(monkeypatch):
    """A function from a folder of predictions and label files to the scores of cityscapesScripts, as its script finds them."""
    from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as script  # noqa: N813

    monkeypatch.setattr(np, "in1d", np.isin, raising=False)  # the script's; NumPy 2.4 took it away

    def evaluate(folder, labels):
        args = copy.copy(script.args)
        args.predictionPath, args.predictionWalk = str(folder), None
        args.JSONOutput, args.quiet = False, True
        names = [str(path) for path in labels]
        return script.evaluateImgLists([script.getPrediction(args, name) for name in names], names, args)

    return evaluate


@pytest.fixture(scope="module")
def stored_run(street_scenes, tmp_path_factory):
    """A run's folder with an untrained network at step 4, which processes know too."""
    workdir, config = (
        tmp_path_factory.mktemp("stored") / "run",
        tiny_config(street_scenes, model=tiny_resnet18()),
    )
    optimizer = make_optimizer(config.optim, 4)
    state = jax.jit(lambda: init_state(DeepLabV3(config.model, config.labels.num_classes), optimizer, 0))()
    with Checkpoints(str(workdir), config) as checkpoints:
        checkpoints.save(to_trees(state.replace(step=jax.numpy.asarray(4, jax.numpy.int32))), 4, {"miou": 0.5})
    return workdir


@pytest.fixture(scope="module")
def chromium():
    """A headless browser; the tests that ask for it are skipped on a machine without one."""
    sync_api = pytest.importorskip("playwright.sync_api")
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip("needs Chromium: install it by the system's packages")
    quiet = (
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-first-run",
        "--disable-quic",
    )
    with sync_api.sync_playwright() as playwright:
        # The sandbox needs privileges that containers lack; the pages are our own.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu", *quiet])
        yield browser
        browser.close()


def command(program, *flags, root=None):
    """The words that start train.py or eval.py on the recipe of tiny.py."""
    data = [f"--config.data.root={root}"] if root else []
    return [sys.executable, str(ROOT / program), f"--config={TINY}", *data, *flags]


def call(program, *flags, root=None, cwd=ROOT, code=0):
    """What the program printed: on stdout, or on stderr where it shall end with another exit code than 0."""
    words = command(program, *flags, root=root)
    result = subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == code, result.stderr
    return result.stderr if code else result.stdout


def recipe(root, *fields):
    """The recipe of tiny.py with fields set by flags."""
    return load_recipe(str(TINY), [f"data.root={root}", *fields])


def train(root, workdir, *fields):
    """What train.py prints, in this process."""
    console = Console(file=io.StringIO(), soft_wrap=True, highlight=False)
    train_recipe(recipe(root, *fields), str(workdir), console)
    return console.file.getvalue()


def logged(workdir, kind):
    """The rows of a run's log."""
    table = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [row for row in table if row["kind"] == kind]


def deeplab(monkeypatch, capsys, *words):
    """Exit code of `deeplab-jax`, run in this process, and what was printed."""
    monkeypatch.setattr("sys.argv", ["deeplab-jax", *map(str, words)])
    code = 0
    try:
        cli.main()
    except SystemExit as stop:
        code = stop.code
    return code, "".join(capsys.readouterr())


def pixels(path) -> np.ndarray:
    """An image file as it is."""
    with Image.open(path) as picture:
        return np.array(picture)
