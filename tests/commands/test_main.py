import subprocess
import sys

import numpy as np
import pytest
from conftest import run_cli, tiny_resnet18

import deeplab_jax as dl
from deeplab_jax.checkpoints.store import save_model
from deeplab_jax.commands import main as cli
from deeplab_jax.config import Config
from deeplab_jax.errors import ConfigError
from deeplab_jax.weights import names
from deeplab_jax.weights.convert import variable_shapes


def test_data_synthetic_draws_scenes(tmp_path, monkeypatch, capsys):
    out = tmp_path / "scenes"
    monkeypatch.setattr("sys.argv", ["deeplab-jax", "data", "synthetic", str(out), "--train", "1", "--val", "1", "--test", "1"])
    cli.main()
    assert (out / "list" / "train.lst").read_text().count("\n") == 1
    assert str(out) in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help_lists_the_commands(arguments, monkeypatch, capsys):
    code, output = run_cli(monkeypatch, capsys, *arguments)
    assert code == 0
    assert "data synthetic, data labels" in output
    assert "predict" in output


def test_help_imports_neither_jax_nor_tensorflow():
    code = """
import sys
from deeplab_jax.commands.main import main
sys.argv = ["deeplab-jax", "--help"]
try: main()
except SystemExit: print(sorted({"jax", "tensorflow"} & set(sys.modules)))
"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.splitlines()[-1] == "[]"


@pytest.mark.parametrize(("arguments", "listed"), [(["data"], "synthetic, labels"), (["segment"], "weights, verify")])
def test_an_unknown_command_is_reported_with_the_available_ones(arguments, listed, monkeypatch, capsys):
    code, output = run_cli(monkeypatch, capsys, *arguments)
    assert code == 2
    assert output.startswith("error: ")
    assert output.count("\n") == 1
    assert listed in output
    assert output.endswith(f"See deeplab-jax {'data ' * (arguments == ['data'])}--help.\n")


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (["--config.data.batch_size=2"], "--config FILE.py data.batch_size=2. See deeplab-jax plan --help."),
        (["--config", "a.py", "--config.seed=2", "--no-compile"], "--config FILE.py seed=2. See deeplab-jax plan --help."),
        (["--config", "a.py", "--model.remat=(1, 2)"], "--config FILE.py 'model.remat=(1, 2)'. See deeplab-jax plan --help."),
        (["--config", "a.py", "--device=2"], "Unrecognized options: --device=2. See deeplab-jax plan --help."),
    ],
)
def test_plan_says_how_it_takes_fields(arguments, advice, monkeypatch, capsys):
    code, output = run_cli(monkeypatch, capsys, "plan", *arguments)
    assert code == 2
    assert output.count("\n") == 1
    assert output.endswith(f"{advice}\n")


@pytest.mark.parametrize("command", [["verify"], ["report"], ["weights", "export"]])
def test_a_mistyped_path_is_reported_together_with_missing_options(command, tmp_path, monkeypatch, capsys):
    (tmp_path / "runs" / "toy" / "checkpoints").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    code, output = run_cli(monkeypatch, capsys, *command, "runs/tyo")
    assert code == 2
    assert output.startswith(f"error: Missing from deeplab-jax {' '.join(command)}: --")
    assert f"'runs/tyo' does not exist. Did you mean {tmp_path}/runs/toy?" in output
    assert output.endswith(f" See deeplab-jax {' '.join(command)} --help.\n")
    _, output = run_cli(monkeypatch, capsys, *command, "runs/toy")
    assert "exist" not in output


@pytest.mark.parametrize(
    "arguments",
    [["data", "check", "--help"], ["weights", "import", "--help"], ["weights", "export", "--help"], ["demo", "--help"]],
)
def test_commands_have_help(arguments, monkeypatch, capsys):
    code, output = run_cli(monkeypatch, capsys, *arguments)
    assert code == 0
    assert output.startswith(f"usage: deeplab-jax {' '.join(arguments[:-1])} ")


def test_a_folder_with_other_files_is_not_changed(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.txt").write_text("precious")
    monkeypatch.setattr("sys.argv", ["deeplab-jax", "data", "synthetic", str(tmp_path)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert (tmp_path / "mine.txt").read_text() == "precious"


def test_a_broken_weights_file_is_reported_on_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "cut.safetensors").write_bytes(b"cut")
    arguments = ["weights", "import", str(tmp_path / "cut.safetensors"), "--from", "mmseg", "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", ["deeplab-jax", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: `")
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_weights_are_exported_and_imported_again(tmp_path, monkeypatch, capsys):
    config = Config(model=tiny_resnet18(fusion="3x3", dilate_conv2=False))
    shapes = variable_shapes(config)
    save_model(
        str(tmp_path / "a"), config, names.unflatten({path: np.ones(shape, np.float32) for path, shape in shapes.items()})
    )
    exported = str(tmp_path / "x.safetensors")
    for arguments in (
        ("export", str(tmp_path / "a"), "--to", "mmseg", "--out", exported),
        ("import", exported, "--out", str(tmp_path / "b"), "--multi-grid", "0.5", "1", "2", "--align-corners"),
    ):
        monkeypatch.setattr("sys.argv", ["deeplab-jax", "weights", *arguments])
        cli.main()
    out = capsys.readouterr().out
    assert "decode_head={'in_channels': 64" in out
    assert "model.multi_grid = (0.5, 1.0, 2.0)  (set by the user)" in out
    assert dl.load(str(tmp_path / "b")).config.model.align_corners


def test_the_best_step_of_a_run_is_not_called_a_wrong_path(tmp_path):
    (tmp_path / "checkpoints" / "2" / "model").mkdir(parents=True)
    with pytest.raises(
        ConfigError, match=r"^Missing from deeplab-jax report: --out FILE\.html\. See deeplab-jax report --help\.$"
    ):
        cli.parse(["report", f"{tmp_path}/best"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["weights", "import", "x.pth", "--out", "o", "--from", "foo"], "foo"),
        (
            ["weights", "import", "x.pth"],
            "Missing from deeplab-jax weights import: --out DIR. 'x.pth' does not exist.",
        ),
        (["weights", "import", "x.pth", "--out", "o", "--nonsense"], "Unrecognized options: --nonsense. See"),
        (["data", "synthetic", "x", "--size", "64"], "--size"),
        (
            ["export", "--checkpoint", "c", "--out", "o", "--format", "onnx", "--size", "3"],
            "`--size` (='3') cannot be read. Give INT INT. See",
        ),
        (["plan", "--config", "c", "--hosts", "a b"], "`--hosts` (='a b') cannot be read. Give INT. See"),
        (
            ["predict", "x", "--checkpoint", "c", "--out", "o", "--batch-size", "a"],
            "`--batch-size` (='a') is not a whole number. See",
        ),
        (["predict", "x", "--checkpoint", "c", "--out", "o", "--opacity", "a"], "`--opacity` (='a') is not a number. See"),
        (
            ["predict", "x", "--checkpoint", "c", "--out", "o", "--scales"],
            "`--scales` (=()) cannot be used. Give factors from 0.01 to 8.",
        ),
        (["predict", "x", "--checkpoint", "c", "--out", "o", "--scales", "nan"], "`--scales` (=(nan,)) cannot be used. Give"),
        (
            ["predict", "x", "--checkpoint", "c", "--out", "o", "--window", "0", "5"],
            "`--window` (=(0, 5)) cannot be used. Give a",
        ),
        (
            ["predict", "x", "--checkpoint", "c", "--out", "o", "--output-stride", "4"],
            "`--output-stride` (='4') is not supported. Use one of 8, 16, 32. See",
        ),
        (
            ["predict", "--checkpoint", "c", "--out", "o"],
            "`INPUT` is missing. Give files, folders or patterns such as 'photos/*.jpg'.",
        ),
        (["robustness", "x", "--severities"], "`--severities` is empty. Use for example --severities 1 3 5."),
        (["data", "chek"], "Available subcommands: synthetic, labels, check, prepare, import. See deeplab-jax data --help."),
    ],
)
def test_invalid_arguments_are_reported_on_one_line(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["deeplab-jax", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
