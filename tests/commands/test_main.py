import numpy as np
import pytest
from absl import flags
from conftest import tiny_model
from ml_collections import config_flags

import deeplab_jax as dl
from deeplab_jax.checkpoints.store import save_model
from deeplab_jax.commands import main as cli
from deeplab_jax.config import Config
from deeplab_jax.errors import ConfigError
from deeplab_jax.weights import names
from deeplab_jax.weights.convert import variable_shapes


def test_the_console_script_draws_the_street_scenes(tmp_path, monkeypatch, capsys):
    out = tmp_path / "scenes"
    monkeypatch.setattr("sys.argv", ["deeplab-jax", "data", "synthetic", str(out), "--train", "1", "--val", "1", "--test", "1"])
    cli.main()
    assert (out / "list" / "train.lst").read_text().count("\n") == 1
    assert str(out) in capsys.readouterr().out


@pytest.mark.parametrize(("words", "code"), [([], 0), (["--help"], 0), (["data"], 2), (["segment"], 2)])
def test_anything_else_lists_the_commands(words, code, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["deeplab-jax", *words])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == code
    assert "data synthetic" in "".join(capsys.readouterr())


def test_a_folder_that_is_something_else_is_left_alone(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.txt").write_text("precious")
    monkeypatch.setattr("sys.argv", ["deeplab-jax", "data", "synthetic", str(tmp_path)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert (tmp_path / "mine.txt").read_text() == "precious"


def test_weights_that_cannot_be_read_are_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "cut.safetensors").write_bytes(b"cut")
    words = ["weights", "import", str(tmp_path / "cut.safetensors"), "--from", "mmseg", "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", ["deeplab-jax", *words])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: `")
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_import_and_export_from_the_command_line(tmp_path, monkeypatch, capsys):
    config = Config(model=tiny_model(fusion="3x3", dilate_conv2=False))
    shapes = variable_shapes(config)
    save_model(
        str(tmp_path / "a"), config, names.unflatten({path: np.ones(shape, np.float32) for path, shape in shapes.items()})
    )
    exported = str(tmp_path / "x.safetensors")
    for words in (
        ("export", str(tmp_path / "a"), "--to", "mmseg", "--out", exported),
        ("import", exported, "--out", str(tmp_path / "b"), "--multi-grid", "0.5", "1", "2", "--align-corners"),
    ):
        monkeypatch.setattr("sys.argv", ["deeplab-jax", "weights", *words])
        cli.main()
    out = capsys.readouterr().out
    assert "decode_head={'in_channels': 64" in out
    assert "model.multi_grid = (0.5, 1.0, 2.0)  (as asked)" in out
    assert dl.load(str(tmp_path / "b")).config.model.align_corners


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["weights", "import", "x.pth", "--out", "o", "--from", "foo"], "foo"),
        (["weights", "import", "x.pth"], "--out"),
        (["weights", "import", "x.pth", "--out", "o", "--nonsense"], "--nonsense"),
        (["data", "synthetic", "x", "--size", "64"], "--size"),
    ],
)
def test_words_that_do_not_fit_are_one_line(words, message, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["deeplab-jax", *words])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # how ml_collections reads a file
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config.seed=1"], "`--config` is missing: give a recipe"),
        (
            ["--config=nowhere.py", "--config.seed=1"],
            "`--config` cannot be used: .* No such file or directory: 'nowhere.py'",
        ),
    ],
)
def test_fields_without_their_recipe_are_one_line(words, message):
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "", values, sys_argv=["", *words])
    with pytest.raises(ConfigError, match=f"^{message}"):
        cli._parse_flags(["", *words], values)
