"""Tests for `deeplab-jax plan` and its estimates."""

import dataclasses
import importlib.util
import os
import re
import subprocess
import sys

import jax
import pytest
from conftest import run_cli, tiny_config, tiny_model

from deeplab_jax.config import Config, DataConfig, EvalConfig, LossConfig, MeshConfig, ModelConfig, TrainConfig
from deeplab_jax.errors import ConfigError
from deeplab_jax.models.cost import layers, total
from deeplab_jax.plan import program
from deeplab_jax.plan.memory import estimate, suggest_savings
from deeplab_jax.training.begin import abstract_state, set_up

# ml_collections uses a deprecated API to load recipes.
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


@pytest.mark.slow
def test_a_plan_needs_no_data(recipe, monkeypatch, capsys):
    code, output = run_cli(monkeypatch, capsys, "plan", "--config", recipe, "--devices", 2, "--spatial", 2, "model.remat=(1,)")
    assert code == 0, output
    assert "batch of 4 crops (32x64) on 1 x 2 devices" in output
    assert re.search(r"stem .* 0.001 .* 0.001 ", output)
    assert re.search(
        r"compiled in \d+ s for cpu: .* temporaries = \d+ MiB \(a CPU program, so only an estimate for other devices\)", output
    )
    assert re.search(r"each device executes [\d.]+ MFLOPs and moves at most [\d.]+ MB", output)
    assert re.search(r"at the peak rate \(lower bound\): [\d.]+ \w?s per step, [\d.]+ images/s", output)
    assert re.search(r"all-reduce: \d+ kB of gradients", output)
    assert "4 steps: 0 min 00 s" in output


@pytest.mark.slow
def test_cpu_devices_take_the_place_of_missing_devices(recipe):
    main = [sys.executable, "-m", "deeplab_jax"]
    words = [*main, "plan", f"--config={recipe}", "--devices=8", "--spatial=2", "--no-compile"]
    result = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    assert "on 4 x 2 devices" in result.stdout
    assert "The device memory size is unknown. Select the device with --accelerator." in result.stdout


@pytest.mark.parametrize(
    ("protocol", "rows"),
    [
        (EvalConfig(batch_size=2), 96),  # a multiple of 16 for each of two devices
        (EvalConfig(batch_size=2, output_stride=8), 80),
        (EvalConfig(batch_size=2, output_stride=32), 128),
        (EvalConfig(batch_size=2, scales=(0.5,)), 80),  # rows are not split
    ],
)
def test_the_planned_evaluation_is_that_of_eval_py(protocol, rows, monkeypatch):
    config = dataclasses.replace(tiny_config(model=tiny_model(output_stride=16)), eval=protocol, mesh=MeshConfig(1, 2))
    monkeypatch.setattr(program, "_compile", lambda lowered, setup, flops: (lowered, flops))
    lowered, flops = program.compile_evaluation(set_up(config, 4, jax.devices()[:2]), (80, 96))
    assert lowered.in_avals[0][1]["image"].shape == (2, rows, 96, 3)
    network = dataclasses.replace(config.model, output_stride=protocol.output_stride or 16)
    assert flops == 2 * total(layers(network, config.labels.num_classes, (80, 96))).flops


@pytest.mark.long
@pytest.mark.parametrize(("accelerator", "compiler"), [("h100", "jax_cuda12_plugin"), ("v5e", "libtpu")])
def test_steps_are_compiled_for_accelerators(accelerator, compiler, recipe, tmp_path):
    if importlib.util.find_spec(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    main = [sys.executable, "-m", "deeplab_jax"]
    words = [*main, "plan", f"--config={recipe}", f"--accelerator={accelerator}", "--devices=4", "--image-size", "32", "64"]
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    results = [subprocess.run(words, capture_output=True, text=True, check=False, env=environment) for _ in range(2)]
    assert results[0].returncode == 0, results[0].stderr
    output = results[0].stdout
    assert output == results[1].stdout  # the second program and its compile time come from the cache
    # A ResNet-18 has 20 convolutions, its ASPP 6 and the classifier 1. On a CPU, most of them would be matrix products.
    assert int(re.search(r"convolutions, forward: (\d+)", output)[1]) >= 27
    assert re.search(r"all-reduce . stage 1 forward +. \d+ ", output)
    assert re.search(r"evaluation of 4 images \(32x64\), compiled in \d+ s for (NVIDIA H100|TPU v5 lite)", output)


@pytest.mark.slow
def test_a_plan_in_epochs_asks_for_the_number_of_images(recipe, monkeypatch, capsys):
    words = ("plan", "--config", f"{recipe}:0", "--devices", 1, "--no-compile", "--batch-size", 2)
    code, output = run_cli(monkeypatch, capsys, *words)
    assert code == 0, output
    assert (
        "train.epochs=2: how long the full run takes depends on the number of training images. Pass that number with --images."
        in output
    )
    code, output = run_cli(monkeypatch, capsys, *words, "--images", 101)
    assert "101 steps: " in output
    assert "may fit: needs about " in output


@pytest.mark.parametrize(("device", "caches"), [([], 1), (["--accelerator=h100"], 0)])
def test_programs_for_other_devices_are_not_written_to_the_cache_of_jax(device, caches, recipe, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr("deeplab_jax.runtime.compilation.enable_compilation_cache", lambda: calls.append(True))
    code, output = run_cli(monkeypatch, capsys, "plan", "--config", recipe, "--devices", 1, "--no-compile", *device)
    assert (code, len(calls)) == (0, caches), output


@pytest.mark.slow
def test_a_run_that_does_not_fit_gets_suggestions(monkeypatch, capsys):
    words = ("--config=configs/cityscapes_r50_os8.py", "--devices=1", "--batch-size=32", "--accelerator=v5e", "--no-compile")
    code, output = run_cli(monkeypatch, capsys, "plan", *words, "--mfu=0.5")
    assert code == 0, output
    assert re.search(r"does not fit: needs 4\d\.\d\d GiB of 16.00 GiB per device", output)
    assert re.findall(r"^  (\S+) .*saves about [\d.]+ GiB per device", output, re.MULTILINE) == [
        "data.batch_size=16",
        "train.micro_batches=2",
        "model.remat='(1,2,3,4)'",
        "mesh.spatial=2",
    ]
    # The step needs 107 TFLOPs and runs at half the peak rate of 197 TFLOP/s.
    assert "at 50% of the peak rate: 1.09 s per step" in output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config=nowhere.py"], "`--config` cannot be loaded .*nowhere.py"),
        (["--devices=3"], "`data.batch_size` .* cannot be split evenly over 3 devices. Use 3 or 6"),
        (["--devices=4", "--spatial=3"], r"`mesh.spatial` .*3. is not a divisor of the number of devices \(4\)"),
        (["--devices=64"], "`--devices` .*64. cannot be used, because JAX was initialised with 4 devices"),
        (["--accelerator=h100", "--devices=0"], "`--devices` .*0. cannot be used"),
        (["--image-size", "0", "64"], "`--image-size` .*0, 64.. cannot be used"),
        (["--devices=0"], "`--devices` .*0. cannot be used"),
        (["--accelerator=abacus"], "`--accelerator` .*'abacus'. is not supported. Use one of a100, "),
        (["--mfu=0"], "`--mfu` .* cannot be used"),
        (["--hosts=0"], "`--hosts` .*0. cannot be used"),
        (["--devices=4", "--hosts=3"], "`--hosts` .*3. cannot be used with 4 devices"),
        (["--devices=4", "--hosts=4", "--spatial=2"], "`--hosts` .*4. cannot be used with 4 devices and mesh.spatial=2"),
        (["--images=0"], "`--images` .*0. cannot be used"),
        (["--batch-size=0"], "`data.batch_size` .*0. cannot be used"),
        (["model.depth=50"], "`depth` is not a field of ModelConfig"),
    ],
)
def test_user_errors_print_one_line(words, message, recipe, monkeypatch, capsys):
    code, output = run_cli(monkeypatch, capsys, "plan", f"--config={recipe}", "--no-compile", *words)
    assert code == 2
    assert re.fullmatch(f"error: {message}.*\n", output), output


# mmsegmentation reports a memory use of 6.1 and 9.6 GB for float32 training with two images per GPU.
@pytest.mark.parametrize(("backbone", "gigabytes"), [("resnet50", 6.1), pytest.param("resnet101", 9.6, marks=pytest.mark.slow)])
def test_the_estimate_is_close_to_the_memory_use_of_pytorch(backbone, gigabytes):
    model = ModelConfig(backbone=backbone, stem="3x3", output_stride=8, aspp_width=512, fusion="3x3", aux_head=True)
    config = Config(model=model, data=DataConfig(batch_size=2))
    assert estimate(config, MeshConfig(1, 1)).total / 1e9 == pytest.approx(gigabytes, rel=0.05)


def test_activations_are_split_over_devices_but_state_and_gradients_are_not():
    config = tiny_config()
    one, four = (estimate(config, MeshConfig(*mesh)) for mesh in ((1, 1), (2, 2)))
    assert four.activations == one.activations / 4
    assert (four.state, four.gradients) == (one.state, one.gradients)
    setup = set_up(config, 4)
    stored = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(abstract_state(setup)))
    assert one.state == pytest.approx(stored, abs=64)  # the estimate omits the step counters


@pytest.mark.slow
def test_only_changes_that_the_config_lacks_are_suggested():
    mesh = MeshConfig(2, 1)
    config = tiny_config(loss=LossConfig(ohem_threshold=0.7), model=tiny_model(dtype="bfloat16", remat=(1, 2, 3, 4)))
    config.data.batch_size = 8
    savings = dict(suggest_savings(config, mesh))
    assert list(savings) == ["data.batch_size=4", "mesh.spatial=2 on 4 devices"]
    assert savings["data.batch_size=4"] == pytest.approx(estimate(config, mesh).activations / 2)
    plain = dataclasses.replace(tiny_config(), train=TrainConfig(steps=4, micro_batches=2))
    plain.data.batch_size = 8
    assert [change for change, _ in suggest_savings(plain, MeshConfig(1, 1))] == [
        "data.batch_size=4",
        "train.micro_batches=4",
        "model.remat='(1,2,3,4)'",
        "model.dtype=bfloat16",
        "mesh.spatial=2 on 2 devices",
    ]


def test_a_smaller_batch_keeps_the_mix_of_the_splits():
    config = tiny_config()
    config.data = dataclasses.replace(config.data, batch_size=12, train_split="a+b", mix=(1, 3))
    assert next(suggest_savings(config, MeshConfig(1, 1)))[0] == "data.batch_size=4"


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", range(1, 9))
def test_plan_suggests_nothing_that_training_refuses(batch_size):
    tried = 0
    for micro_batches in range(1, batch_size + 1):
        config = dataclasses.replace(tiny_config(), train=TrainConfig(steps=4, micro_batches=micro_batches))
        config.data.batch_size = batch_size
        if batch_size % micro_batches or batch_size == micro_batches:
            continue
        mesh = MeshConfig(**set_up(config, 4, jax.devices()[:1]).mesh.shape)
        for change, _ in suggest_savings(config, mesh):
            field, value = change.split()[0].split("=")
            if field in ("data.batch_size", "train.micro_batches"):
                section, name = field.split(".")
                part = dataclasses.replace(getattr(config, section), **{name: int(value)})
                set_up(dataclasses.replace(config, **{section: part}), 4, jax.devices()[:1])
                tried += 1
    assert tried or batch_size < 4


@pytest.mark.parametrize(("batch_size", "micro_batches"), [(1, 1), (2, 2), (4, 4)])
def test_one_image_at_a_time_is_refused(batch_size, micro_batches):
    config = dataclasses.replace(tiny_config(), train=TrainConfig(steps=4, micro_batches=micro_batches))
    config.data.batch_size = batch_size
    with pytest.raises(ConfigError, match=rf"`data.batch_size` \(={batch_size}\) .* at least {2 * micro_batches}") as error:
        set_up(config, 4, jax.devices()[:1])
    assert "\n" not in str(error.value)


def test_what_hosts_exchange_read_and_can_lose_is_printed(recipe, monkeypatch, capsys):
    words = ("plan", "--config", recipe, "--devices", 4, "--hosts", 2, "--accelerator", "h100", "--no-compile")
    code, output = run_cli(monkeypatch, capsys, *words, "train.save_every=100")
    assert code == 0, output
    assert "2 hosts with 2 devices each, which train 2 images per step each:" in output
    # In a ring of two, a host sends what is summed once: 2 x (2 - 1) / 2 = 1. A ring of four devices sends 1.5 times that.
    units = {"kB": 1e3, "MB": 1e6}
    summed, sent = (
        float(number) * units[unit]
        for who in ("host", "device")
        for number, unit in re.findall(rf"each {who} sends ([\d.]+) (\wB) per step", output)
    )
    assert sent == pytest.approx(1.5 * summed, rel=0.01)
    rate, host_rate = map(
        float, re.search(r"storage: ([\d.]+) images/s with their labels, ([\d.]+) for each host", output).groups()
    )
    assert host_rate == pytest.approx(rate / 2, abs=0.1)
    assert re.search(r"checkpoint: [\d.]+ [kM]B", output)
    assert "loses up to 100 steps (train.save_every)" in output
