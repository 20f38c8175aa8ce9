"""Configure the tests (four fake CPU devices, strict shape checks) and provide shared fixtures and helpers."""

import copy
import gc
import importlib.metadata
import io
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

os.environ["JAX_NUM_CPU_DEVICES"] = "4"
# The tests spend most of their time compiling. Processes started by tests share this cache.
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(os.path.dirname(__file__), "..", ".pytest_cache", "jax")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"
# Tests do not need fast programs. Optimization level 0 at least halves a training step's compile time, and not splitting
# modules saves a tenth of what remains.
os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
# In jax 0.10, XLA's older emitters compile a training step three times as fast as its fusion emitters.
if importlib.metadata.version("jaxlib").startswith("0.10."):
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"

# TensorFlow would import Keras, and Keras would import pandas and matplotlib. This package uses none of them.
os.environ["TF_USE_LEGACY_KERAS"] = "1"

# Tracing a network creates many objects. By default, Python looks for garbage after every 700 new ones.
gc.set_threshold(50_000)

import jax
import numpy as np
import pytest
from filelock import FileLock
from PIL import Image
from rich.console import Console

jax.config.update("jax_numpy_rank_promotion", "raise")

# Programs started with nohup or in the background ignore these signals, and so would every process that the tests start.
for ignored in (signal.SIGHUP, signal.SIGINT):
    if signal.getsignal(ignored) == signal.SIG_IGN:
        signal.signal(ignored, signal.SIG_DFL if ignored == signal.SIGHUP else signal.default_int_handler)

from tiny import smallest_model, tiny_config, tiny_model, tiny_resnet18  # noqa: F401

from deeplab_jax.checkpoints.folders import Rank
from deeplab_jax.checkpoints.store import Checkpoints
from deeplab_jax.commands import main as cli
from deeplab_jax.commands import train as training_command
from deeplab_jax.commands.flags import load_recipe
from deeplab_jax.models import DeepLabV3, convolution, graph
from deeplab_jax.runtime.mesh import replicated_sharding
from deeplab_jax.scenes import dataset as synthetic
from deeplab_jax.training import begin, loop, speed, verify
from deeplab_jax.training.optimizer import make_optimizer
from deeplab_jax.training.state import init_state, to_trees

ROOT = pathlib.Path(__file__).parent.parent
TINY = ROOT / "tests" / "tiny.py"
CONFIGS = ROOT / "configs"
NEED_A_FILE = ("stored", "custom", "custom_lite0")
RECIPES = sorted(path for path in CONFIGS.glob("*.py") if path.stem not in NEED_A_FILE)


def make_once(tmp_path_factory, name, make):
    """Return a folder shared by all test workers. The first worker to need it calls `make` to fill it."""
    temporary = tmp_path_factory.getbasetemp()
    folder = (temporary.parent if "PYTEST_XDIST_WORKER" in os.environ else temporary) / name
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            make(folder.with_suffix(".part"))
            folder.with_suffix(".part").rename(folder)
    return folder


@pytest.fixture(scope="session")
def street_scenes(tmp_path_factory):
    """Return a synthetic data set in the Cityscapes layout with 6 training, 3 validation and 2 test scenes of 64x128."""
    return make_once(tmp_path_factory, "scenes", lambda root: synthetic.write(root, train=6, val=3, test=2, size=(64, 128)))


@pytest.fixture(scope="session")
def finished_run(street_scenes, tmp_path_factory):
    """Return the run folder from a finished train.py run. The run was started with a relative --workdir, as is common."""

    def train(folder):
        folder.mkdir()
        run_program("train.py", "--workdir=runs/tiny", root=street_scenes, cwd=folder)

    return make_once(tmp_path_factory, "there", train) / "runs" / "tiny"


@pytest.fixture(scope="session")
def gcs():
    """Run an emulator of Google Cloud Storage with the empty bucket gs://bucket, and return its storage."""
    import fsspec
    import gcs_emulator

    with gcs_emulator.run_emulator() as (environment, storage), pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.setitem(fsspec.config.conf, "gcs", {"token": environment["FSSPEC_GCS_TOKEN"]})
        yield storage


@pytest.fixture(scope="module")
def plain_convolutions():
    """Use XLA's convolution everywhere. It compiles faster, and these tests are not about the network itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convolution, "_fastest_form", lambda *shapes: "xla")
        yield


def remember(patch, modules, name, make_key):
    """Replace a function in some modules with one that calls it once for each key, and then returns the same result."""
    function, results = getattr(modules[0], name), {}

    def look_up(*args, **kwargs):
        if (key := repr(make_key(*args, **kwargs))) not in results:
            results[key] = function(*args, **kwargs)
        return results[key]

    for module in modules:
        patch.setattr(module, name, look_up)


@pytest.fixture(scope="module")
def shared_step():
    """Trace and compile once for all runs of a module that differ only in when they save and evaluate."""

    def step_key(mesh, *, config, **parts):
        length = (config.train.steps, config.train.epochs)  # the learning rates depend on it
        sections = (config.labels, config.model, config.data, config.loss, config.optim)
        return mesh, config.seed, config.train.micro_batches, length, sections

    def start_key(setup):
        config = setup.config
        return setup.mesh, config.seed, config.train.steps, config.train.epochs, config.labels, config.model, config.optim

    def create_state(setup, pretrained, say=print):
        if pretrained or setup.config.optim.frozen:
            return create(setup, pretrained, say)
        if (key := repr(start_key(setup))) not in states:
            states[key] = jax.tree.map(np.asarray, create(setup, None, say))
        return jax.device_put(states[key], replicated_sharding(setup.mesh))

    create, states = begin.create_state, {}
    with pytest.MonkeyPatch.context() as patch:
        remember(patch, (loop, verify), "compile_train_step", step_key)
        remember(patch, (speed,), "training_flops", lambda config: (config.model, config.labels, config.data))
        patch.setattr(begin, "create_state", create_state)
        yield


@pytest.fixture(scope="module")
def trace_networks_once():
    """Remember the shapes of variables, because tracing a network takes up to a second, and many tests have the same one."""
    with pytest.MonkeyPatch.context() as patch:
        remember(patch, (graph,), "abstract_variables", lambda network: network)
        yield


@pytest.fixture
def quick_export(monkeypatch):
    """Export StableHLO for one canvas only, and compare a file at one size, because each takes seconds to compile."""
    from deeplab_jax.export import export

    monkeypatch.setattr(export, "CANVAS_PIXELS", 1000)
    monkeypatch.setattr(export, "CHECKED_SIZES", ((1, 41, 50),))


@pytest.fixture
def official_evaluation(monkeypatch):
    """Return a function that scores a prediction folder against label files with the cityscapesScripts."""
    from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as script  # noqa: N813

    monkeypatch.setattr(np, "in1d", np.isin, raising=False)  # the script uses np.in1d, which NumPy 2.4 removed

    def evaluate(folder, labels):
        args = copy.copy(script.args)
        args.predictionPath, args.predictionWalk = str(folder), None
        args.JSONOutput, args.quiet = False, True
        names = [str(path) for path in labels]
        return script.evaluateImgLists([script.getPrediction(args, name) for name in names], names, args)

    return evaluate


@pytest.fixture(scope="module")
def stored_run(street_scenes, tmp_path_factory):
    """Return a run folder with an untrained network at step 4. It uses ResNet-18, so other processes can also load it."""

    def store(folder):
        config = tiny_config(street_scenes, model=tiny_resnet18())
        network, optimizer = DeepLabV3(config.model, config.labels.num_classes), make_optimizer(config.optim, 4)
        state = jax.jit(lambda: init_state(network, optimizer, 0))()
        with Checkpoints(str(folder), config) as checkpoints:
            checkpoints.save(to_trees(state.replace(step=jax.numpy.asarray(4, jax.numpy.int32))), 4)
            checkpoints.add_scores(4, {"miou": 0.5}, Rank("miou", 0.5))

    # Tests add files to the run, so each module has a copy.
    return shutil.copytree(make_once(tmp_path_factory, "stored", store), tmp_path_factory.mktemp("stored") / "run")


@pytest.fixture(scope="module")
def chromium():
    """Return a headless browser, or skip the test if none is installed."""
    sync_api = pytest.importorskip("playwright.sync_api")
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip("needs Chromium: install it with the system package manager")
    quiet = (
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-first-run",
        "--disable-quic",
    )
    with sync_api.sync_playwright() as playwright:
        # The sandbox needs privileges that containers lack, and our own pages do not need it.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu", *quiet])
        yield browser
        browser.close()


def make_command(program, *flags, root=None):
    """Return the command that runs train.py or eval.py with the recipe in tiny.py."""
    data = [f"--config.data.root={root}"] if root else []
    return [sys.executable, str(ROOT / program), f"--config={TINY}", *data, *flags]


def run_program(program, *flags, root=None, cwd=ROOT, code=0):
    """Run a program and return its stdout, or its stderr if the expected exit code is not 0."""
    arguments = make_command(program, *flags, root=root)
    result = subprocess.run(arguments, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == code, result.stderr
    return result.stderr if code else result.stdout


def load_tiny_recipe(root, *fields):
    """Return the config from tiny.py, with some fields overridden."""
    return load_recipe(str(TINY), [f"data.root={root}", *fields])


def train(root, workdir, *fields):
    """Train in this process and return what train.py would print."""
    console = Console(file=io.StringIO(), soft_wrap=True, highlight=False)
    training_command.train(load_tiny_recipe(root, *fields), str(workdir), console=console)
    return console.file.getvalue()


def read_log_rows(workdir, kind):
    """Return the "train" or "eval" rows from a run's log."""
    table = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [row for row in table if row["kind"] == kind]


def run_cli(monkeypatch, capsys, *arguments):
    """Run `deeplab-jax` in this process and return its exit code and output."""
    monkeypatch.setattr("sys.argv", ["deeplab-jax", *map(str, arguments)])
    code = 0
    try:
        cli.main()
    except SystemExit as stop:
        code = stop.code
    return code, "".join(capsys.readouterr())


def random_variables(network, seed=0):
    """Return variables for a network, with BatchNorm statistics other than 0 and 1.

    NumPy draws them, because compiling `network.init` takes seconds.
    """
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        match path[-1].key:
            case "kernel":
                values = rng.normal(size=leaf.shape) * np.sqrt(2 / np.prod(leaf.shape[:-1]))
            case "bias":
                values = rng.normal(size=leaf.shape) * 0.1
            case "mean":
                values = rng.uniform(-0.5, 0.5, leaf.shape)
            case "scale" | "var":
                values = rng.uniform(0.5, 1.5, leaf.shape)
        return values.astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, graph.abstract_variables(network))


def read_pixels(path) -> np.ndarray:
    """Return an image file's pixels without converting its mode."""
    with Image.open(path) as picture:
        return np.array(picture)
