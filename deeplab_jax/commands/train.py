"""Training a recipe: what train.py does with its flags."""

from rich.console import Console

from deeplab_jax.config import Config
from deeplab_jax.runtime.compilation import keep_programs
from deeplab_jax.train.begin import set_up
from deeplab_jax.train.loop import train
from deeplab_jax.weights.transfer import pretrained_variables


def train_recipe(config: Config, workdir: str, console: Console) -> None:
    """Train to the end of the recipe, or resume the run that `workdir` holds. Every process of the run calls it.

    Args:
      config: validated.
      workdir: the run's folder.
      console: where progress is shown.

    Raises:
      ConfigError, CheckpointError, TrainingError: See `train` and `pretrained_variables`.
      DataError: A split cannot be read.
    """
    from deeplab_jax.commands.datasets import training_data  # which imports TensorFlow

    keep_programs()
    set_up(config, 1)  # a config that no run can be made of is said before the data is read, which can take minutes
    data, steps = training_data(config, console.print)
    pretrained = (lambda: pretrained_variables(config, console.print)) if config.model.pretrained else None
    train(config, workdir, steps=steps, data=data, console=console, pretrained=pretrained)
