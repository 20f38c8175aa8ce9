"""`deeplab-jax plan` in this process, and what it rests on."""

import dataclasses
import re
import subprocess
import sys

import jax
import pytest
from conftest import deeplab, tiny_config, tiny_model

from deeplab_jax.config import Config, DataConfig, LossConfig, MeshConfig, ModelConfig, TrainConfig
from deeplab_jax.plan.memory import estimate, remedies
from deeplab_jax.train.begin import abstract_state, set_up

# How ml_collections loads a recipe.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

RECIPE = """
from deeplab_jax.config import Config, DataConfig, EvalConfig, ModelConfig, TrainConfig


def get_config(steps: str = "4") -> Config:
    return Config(
        model=ModelConfig(backbone="resnet18", width=8, aspp_width=8),
        data=DataConfig(root="nowhere", batch_size=4, crop_size=(32, 64)),
        train=TrainConfig(steps=int(steps), epochs=0.0 if int(steps) else 2.0),
        eval=EvalConfig(batch_size=4),
    )
"""


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "recipe.py").write_text(RECIPE)
    return tmp_path / "recipe.py"


def test_a_recipe_without_its_data(recipe, monkeypatch, capsys):
    code, said = deeplab(monkeypatch, capsys, "plan", "--config", recipe, "--devices", 2, "--spatial", 2, "model.remat=(1,)")
    assert code == 0, said
    assert "batch 4 of 32x64 on 1 x 2 devices" in said
    assert re.search(r"stem .* 0.001 .* 0.001 ", said)
    assert re.search(
        r"compiled in \d+ s for cpu: .* temporaries = \d+ MiB \(a CPU program: for other devices an estimate\)", said
    )
    assert re.search(r"executes [\d.]+ MFLOPs and accesses [\d.]+ MB a device", said)
    assert re.search(r"at the peak rate, so at the least: [\d.]+ \w?s a step, [\d.]+ images/s", said)
    assert re.search(r"all-reduced: \d+ kB of gradients", said)
    assert "4 steps: 0 min 00 s" in said


def test_devices_that_are_not_there_are_stood_in_for(recipe):
    main = [sys.executable, "-c", "from deeplab_jax.commands.main import main; main()"]
    words = [*main, "plan", f"--config={recipe}", "--devices=8", "--spatial=2", "--no-compile"]
    result = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    assert "on 4 x 2 devices" in result.stdout
    assert "what a device has is not known here: name it with --accelerator" in result.stdout


def test_a_run_in_epochs_needs_the_number_of_images(recipe, monkeypatch, capsys):
    words = ("plan", "--config", f"{recipe}:0", "--devices", 1, "--no-compile", "--batch-size", 2)
    code, said = deeplab(monkeypatch, capsys, *words)
    assert code == 0, said
    assert "train.epochs=2: give --images, how many the training split has" in said
    code, said = deeplab(monkeypatch, capsys, *words, "--images", 101)
    assert "101 steps: " in said
    assert "may fit, at the least: " in said


def test_what_does_not_fit_comes_with_what_would_help(monkeypatch, capsys):
    words = ("--config=configs/cityscapes_r50_os8.py", "--devices=1", "--batch-size=32", "--accelerator=v5e", "--no-compile")
    code, said = deeplab(monkeypatch, capsys, "plan", *words, "--mfu=0.5")
    assert code == 0, said
    assert re.search(r"does not fit: 4\d\.\d\d GiB of 16.00 GiB a device", said)
    assert re.findall(r"^  (\S+) .*about [\d.]+ GiB", said, re.MULTILINE) == [
        "data.batch_size=16",
        "train.micro_batches=2",
        "model.remat='(1,2,3,4)'",
        "mesh.spatial=2",
    ]
    # 107 TFLOPs at half of 197 TFLOP/s.
    assert "at 50% of the peak rate: 1.09 s a step" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config=nowhere.py"], "`--config` cannot be used: .*nowhere.py"),
        (["--devices=3"], "`data.batch_size` .* does not divide over 3 devices: use 3 or 6"),
        (["--devices=4", "--spatial=3"], "`mesh.spatial` .*3. does not divide the 4 devices"),
        (["--devices=64"], "`--devices` .*64. cannot be used: JAX was started with 4"),
        (["--devices=0"], "`--devices` .*0. cannot be used"),
        (["--accelerator=abacus"], "`--accelerator` .*'abacus'. is not known: use one of a100, "),
        (["--mfu=0"], "`--mfu` .* cannot be used"),
        (["--images=0"], "`--images` .*0. cannot be used"),
        (["--batch-size=0"], "`data.batch_size` .*0. cannot be used"),
        (["model.depth=50"], "`depth` is no field of the config's ModelConfig"),
    ],
)
def test_mistakes_are_one_line(words, message, recipe, monkeypatch, capsys):
    code, said = deeplab(monkeypatch, capsys, "plan", f"--config={recipe}", "--no-compile", *words)
    assert code == 2
    assert re.fullmatch(f"error: {message}.*\n", said), said


# mmsegmentation publishes 6.1 and 9.6 GB for two images a GPU, float32.
@pytest.mark.parametrize(("backbone", "gigabytes"), [("resnet50", 6.1), ("resnet101", 9.6)])
def test_the_estimate_is_near_what_pytorch_takes(backbone, gigabytes):
    model = ModelConfig(backbone=backbone, stem="3x3", output_stride=8, aspp_width=512, fusion="3x3", aux_head=True)
    config = Config(model=model, data=DataConfig(batch_size=2))
    assert estimate(config, MeshConfig(1, 1)).total / 1e9 == pytest.approx(gigabytes, rel=0.05)


def test_what_is_shared_out_and_what_is_not():
    config = tiny_config()
    one, four = (estimate(config, MeshConfig(*mesh)) for mesh in ((1, 1), (2, 2)))
    assert four.activations == one.activations / 4
    assert (four.state, four.gradients) == (one.state, one.gradients)
    setup = set_up(config, 4)
    stored = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(abstract_state(setup)))
    assert one.state == pytest.approx(stored, abs=64)  # the counters


def test_remedies_are_those_not_taken_yet():
    mesh = MeshConfig(2, 1)
    config = tiny_config(loss=LossConfig(ohem_threshold=0.7), model=tiny_model(dtype="bfloat16", remat=(1, 2, 3, 4)))
    config.data.batch_size = 8
    found = dict(remedies(config, mesh))
    assert list(found) == ["data.batch_size=4", "mesh.spatial=2 on 4 devices"]
    assert found["data.batch_size=4"] == pytest.approx(estimate(config, mesh).activations / 2)
    plain = dataclasses.replace(tiny_config(), train=TrainConfig(steps=4, micro_batches=2))
    assert [change for change, _ in remedies(plain, MeshConfig(1, 1))] == [
        "data.batch_size=2",
        "train.micro_batches=4",
        "model.remat='(1,2,3,4)'",
        "model.dtype=bfloat16",
        "mesh.spatial=2 on 2 devices",
    ]
