import os
import subprocess
import sys

import pytest
from absl import flags as absl_flags
from conftest import CONFIGS
from ml_collections import config_flags

from deeplab_jax.commands import flags
from deeplab_jax.commands.data import choose_labels
from deeplab_jax.errors import ConfigError
from deeplab_jax.files import require_folder
from deeplab_jax.runtime.machine import usable_cores

# ml_collections uses a deprecated function to load recipes.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
QUICKSTART = str(CONFIGS / "quickstart.py")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.seed=1"], "`--config` is missing. Give a recipe"),
        (
            ["--config=nowhere.py", "--config.seed=1"],
            r"`--config` cannot be loaded \(.* No such file or directory: 'nowhere.py'",
        ),
        ([f"--config={QUICKSTART}", "--configs=x"], "Unknown command line flag 'configs'"),
        ([f"--config={QUICKSTART}", "config.seed=1"], "`config.seed=1` is not a flag"),
    ],
)
def test_wrong_flags_are_reported_on_one_line(arguments, message):
    values = absl_flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "", values, sys_argv=["", *arguments])
    with pytest.raises(ConfigError, match=f"^{message}") as caught:
        flags._parse_flags(["", *arguments], values)
    assert "\n" not in str(caught.value)


def test_a_recipe_in_the_home_folder_is_loaded_also_from_python(monkeypatch):
    monkeypatch.setenv("HOME", str(CONFIGS))
    config = flags.load_recipe("~/quickstart.py", ["data.root=~/set"])
    assert config.data.root == f"{CONFIGS}/set"


@pytest.mark.parametrize(
    ("words", "ordered"),
    [
        (["--config.seed=1", "--config=a.py"], ["--config=a.py", "--config.seed=1"]),
        (["--workdir", "runs/a", "--config", "a.py", "--x"], ["--config", "a.py", "--workdir", "runs/a", "--x"]),
        (["--config=a.py", "--config.seed=1"], ["--config=a.py", "--config.seed=1"]),
        (["-config.seed=1", "-config", "a.py"], ["-config", "a.py", "-config.seed=1"]),
        (["--config.seed=1", "--", "--config=a.py"], ["--config.seed=1", "--", "--config=a.py"]),
        (["--config.seed=1", "--config"], ["--config", "--config.seed=1"]),
    ],
)
def test_the_recipe_can_come_after_its_fields(words, ordered):
    assert flags.put_recipe_first(words) == ordered


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (["model.decoderwidth=3"], "Did you mean decoder_width"),
        (["data.crop=3"], r"`crop` is not a field.*crop_size"),
        (["date.root=3"], "`date` is not a field.*data"),
        (["optim.lr=fast"], r"optim.lr=fast: Give a number\.$"),
        (["train.steps=1.5"], r"train.steps=1.5: Give an integer\.$"),
        (["data.flip=perhaps"], r"data.flip=perhaps: Give true or false\.$"),
        (["labels=voc"], "`--config.labels` cannot be set by a flag"),
        (["labels.names=('a','b')"], "`--config.labels` cannot be set by a flag"),
        (["labels.id=1"], "`--config.labels` cannot be set by a flag"),
        (["model=resnet50"], "`--config.model` is a section of the config. Set its fields instead: backbone, width"),
        (["loss=1"], "`--config.loss` is a section of the config"),
        (["eval.window=512"], r"`eval.window` \(=\(512,\)\)"),
        (["model.multi_grid=(1,2)", "model.multi_grid=(1,1)"], "`--config.model.multi_grid` is given 2 times. Give it once"),
    ],
)
def test_wrong_fields_are_reported_on_one_line(fields, message):
    with pytest.raises(ConfigError, match=message) as caught:
        flags.load_recipe(QUICKSTART, fields)
    assert "\n" not in str(caught.value)


def test_a_recipe_that_does_not_exist_is_reported_on_one_line():
    with pytest.raises(ConfigError, match=r"nowhere\.py") as caught:
        flags.load_recipe("nowhere.py")
    assert "\n" not in str(caught.value)


OWN = "from deeplab_jax.config import *\ndef get_config():\n c = Config()\n "
RECIPES = {
    "def get_config(:": "invalid syntax",
    "import nothere": "No module named 'nothere'",
    "x = 1": "get_config",
    "def get_config(): return 3": "returns a value of type int",
    "from deeplab_jax.config import *\ndef get_config(): return DataConfig(batchsize=3)": (
        "`batchsize` is not a field of DataConfig. Did you mean batch_size?"
    ),
    OWN + "c.optim.rate = 3": "`rate` is not a field of OptimConfig",
    OWN + "c.labels.name = 'x'": "line 4: FrozenInstanceError: .*'name'",
    "def get_config(): return sed": r"cannot be loaded \(line 1: NameError: name 'sed' is not defined\)\. Fix",
    "def get_config(): return 1 / 0": "line 1: ZeroDivisionError",
    "import os\nx = os.environ['NOWHERE']": r"\(line 2: KeyError: 'NOWHERE'\)",
    "def get_config(): raise ValueError('two\\nlines')": r"\(line 1: ValueError: two lines\)",
    "def get_config(): raise RuntimeError": r"\(line 1: RuntimeError\)",
    "def get_config(): return None": r"`--config` returns None\. Its get_config\(\) must return a",
    "get_config = 3": "TypeError: 'int' object is not callable",
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_that_cannot_be_loaded_is_reported_on_one_line(recipe, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "config_config", raising=False)  # forget earlier recipes, because train.py only loads one
    path = tmp_path / "recipe.py"
    path.write_text(recipe)
    with pytest.raises(ConfigError, match=RECIPES[recipe]) as caught:
        flags.load_recipe(str(path))
    assert "\n" not in str(caught.value)


def test_other_files_are_not_run_as_recipes(tmp_path):
    path = tmp_path / "weights.pth"
    path.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ConfigError, match=r"`--config` .* is not a recipe, which is a Python file"):
        flags.load_recipe(str(path))
    with pytest.raises(ConfigError, match=r"is not a \.json file or a recipe"):
        choose_labels(str(path))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("flag", ["--workdir", "--checkpoint"])
def test_a_missing_folder_or_a_file_in_its_place_is_reported(flag):
    for path, message in ((None, f"`{flag}` is missing"), (__file__, rf"`{flag}` \(='.*'\) is a file")):
        with pytest.raises(ConfigError, match=message):
            require_folder(path, flag, "runs/quickstart")


@pytest.mark.skipif(usable_cores() < 2, reason="needs two cores")
def test_a_mesh_divides_the_cpu_into_devices():
    program = """
import jax
from absl import flags
from deeplab_jax.commands.flags import define_host_flags, join_hosts
from deeplab_jax.config import MeshConfig
define_host_flags()
flags.FLAGS(["train.py"])
with join_hosts(MeshConfig(data=2)):
    print(jax.device_count())
"""
    environment = {name: value for name, value in os.environ.items() if name != "JAX_NUM_CPU_DEVICES"} | {
        "JAX_PLATFORMS": "cpu"
    }
    output = subprocess.run([sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True).stdout
    assert int(output) == 2
