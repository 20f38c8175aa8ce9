"""Four fake CPU devices, strict shapes, and tiny things that several tests share."""

import copy
import os
import pathlib
import shutil

os.environ["JAX_NUM_CPU_DEVICES"] = "4"
# Compiling is most of the time that the tests take; the processes that they start share the cache.
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(os.path.dirname(__file__), "..", ".pytest_cache", "jax")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"
# A tiny network's step compiles in 12 s instead of 30; what it computes is not the tests' concern to do fast.
os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"

import jax
import numpy as np
import pytest
from PIL import Image

jax.config.update("jax_numpy_rank_promotion", "raise")

from deeplab_jax.checkpoints.store import Checkpoints
from deeplab_jax.commands import main as cli
from deeplab_jax.config import Config, DataConfig, EvalConfig, ModelConfig, OptimConfig, TrainConfig
from deeplab_jax.models import DeepLabV3
from deeplab_jax.scenes import dataset as synthetic
from deeplab_jax.train.optimizer import make_optimizer
from deeplab_jax.train.state import init_state, to_trees

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"
NEED_A_FILE = ("stored", "custom")
RECIPES = sorted(path for path in CONFIGS.glob("*.py") if path.stem not in NEED_A_FILE)


@pytest.fixture(scope="session")
def street_scenes(tmp_path_factory):
    """A drawn Cityscapes-layout set of 6 training, 3 validation and 2 test scenes of 64x128."""
    root = tmp_path_factory.mktemp("data") / "scenes"
    synthetic.write(root, train=6, val=3, test=2, size=(64, 128))
    return root


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
    """A run's folder with an untrained network at step 4."""
    workdir, config = tmp_path_factory.mktemp("stored") / "run", tiny_config(street_scenes)
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


def tiny_model(**switches) -> ModelConfig:
    """A network that compiles in seconds."""
    return ModelConfig(**{"backbone": "resnet18", "width": 8, "aspp_width": 8} | switches)


def tiny_config(root="", **fields) -> Config:
    """A run of a few steps on 32x64 crops."""
    return Config(
        model=fields.pop("model", tiny_model()),
        data=DataConfig(root=str(root), batch_size=4, crop_size=(32, 64), scale=(0.5, 1.0)),
        optim=OptimConfig(lr=0.05),
        train=TrainConfig(steps=4, log_every=1, eval_every=4, save_every=2),
        eval=EvalConfig(batch_size=4),
        **fields,
    )
