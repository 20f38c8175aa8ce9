"""The `deeplab-jax data ...` commands. TensorFlow is imported by those that need it."""

from pathlib import Path
from typing import Annotated

import tyro


def synthetic(
    out: Annotated[Path, tyro.conf.Positional],
    train: int = 128,
    val: int = 24,
    test: int = 8,
    size: tuple[int, int] = (192, 384),
    seed: int = 0,
) -> None:
    """Draw a small street-scene set in the Cityscapes layout.

    Args:
      out: folder to make.
      train: training scenes.
      val: validation scenes.
      test: test scenes, without labels.
      size: height and width in pixels.
      seed: another seed draws other scenes.
    """
    from deeplab_jax.data import synthetic as drawn

    drawn.write(out, train=train, val=val, test=test, size=size, seed=seed)
    print(f"{train} training, {val} validation and {test} test scenes are in {out}")
