"""Train a recipe. This is the implementation of train.py."""

from rich.console import Console

from deeplab_jax.config import Config
from deeplab_jax.runtime.compilation import enable_compilation_cache
from deeplab_jax.training.begin import set_up
from deeplab_jax.training.loop import train
from deeplab_jax.training.photometric import describe_limits
from deeplab_jax.weights.transfer import pretrained_variables


def train_recipe(config: Config, workdir: str, console: Console) -> None:
    """Train a recipe to completion, or resume the run in `workdir`. Every process in the run must call this function.

    Args:
      config: A validated config.
      workdir: The run folder.
      console: The console for progress messages.

    Raises:
      ConfigError, CheckpointError, TrainingError: See `train` and `pretrained_variables`.
      DataError: A split is unreadable.
    """
    from deeplab_jax.commands.datasets import open_training_data  # imports TensorFlow

    enable_compilation_cache()
    # Report an invalid config before reading the data, which can take minutes.
    set_up(config, 1)
    if config.data.photometric and (limits := describe_limits(config.data.channels)):
        console.print(limits)
    data, steps = open_training_data(config, console.print)
    pretrained = (lambda: pretrained_variables(config, console.print)) if config.model.pretrained else None
    train(config, workdir, steps=steps, data=data, console=console, pretrained=pretrained)
