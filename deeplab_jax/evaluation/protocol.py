"""Choose the config with which a checkpoint is evaluated."""

import dataclasses

from deeplab_jax.checkpoints.compare import find_differences
from deeplab_jax.config import Config, MeshConfig

# Each of these is chosen for the machine or the question at hand, and none changes the score of a split.
_FREE = ("eval.split", "eval.batch_size")


def on_one_device(config: Config, split: str | None) -> Config:
    """Return a run's config for an evaluation of `split`, by default its `eval.split`, on one device.

    Any machine can then evaluate it, even a run that used 64 devices.
    """
    evaluation = dataclasses.replace(config.eval, split=split or config.eval.split)
    return dataclasses.replace(config, mesh=MeshConfig(data=1), eval=evaluation)


def keep_output_stride(config: Config, stored: Config) -> Config:
    """Return `config` with the output stride of training, which `eval.output_stride` overrides.

    The same weights work at every output stride, so a recipe that has another one than the run would fit the checkpoint.
    """
    return dataclasses.replace(config, model=dataclasses.replace(config.model, output_stride=stored.model.output_stride))


def describe_differences(config: Config, stored: Config) -> list[str]:
    """Return a line for each field that makes scores differ from those of training.

    Args:
      config: The config given for the evaluation.
      stored: The checkpoint's config.
    """
    lines = []
    for field, (then, now) in find_differences([stored, config]).items():
        if field == "model.output_stride" and not config.eval.output_stride:
            lines.append(
                f"`{field}` (={now}) is {then} in the checkpoint, whose value is used. "
                "Set `eval.output_stride` for another one."
            )
        elif field in ("model.dtype", "data.value_range") or (field.startswith("eval.") and field not in _FREE):
            lines.append(f"`{field}` (={now!r}) is {then!r} in the checkpoint, so scores can differ from those of training.")
    return lines
