import pytest
from absl import flags as absl_flags
from ml_collections import config_flags

from deeplab_jax.commands import flags
from deeplab_jax.errors import ConfigError


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
    values = absl_flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "", values, sys_argv=["", *words])
    with pytest.raises(ConfigError, match=f"^{message}"):
        flags._parse_flags(["", *words], values)
