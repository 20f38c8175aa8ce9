"""A trained network to use: NCHW in and out, NHWC inside."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8

from deeplab_jax.checkpoints.store import resolve, restore_model, stored_config
from deeplab_jax.config import Config
from deeplab_jax.evaluation import inference
from deeplab_jax.evaluation.pictures import require_images
from deeplab_jax.labels import LabelSet
from deeplab_jax.runtime.compilation import Programs, compile_program, keep_programs


@dataclasses.dataclass(frozen=True)
class Segmenter:
    """A network with its weights, label set and normalisation.

    Attributes:
      config: of the run, not to be changed here; `eval` decides the output stride, windows, scales and flip.
      variables: {"params", "batch_stats"}.
    """

    config: Config
    variables: dict[str, Any]

    @property
    def label_set(self) -> LabelSet:
        """Names and colours of the train ids."""
        return self.config.labels

    def logits(self, images: UInt8[np.ndarray, "n 3 h w"]) -> Float[np.ndarray, "n k h w"]:
        """Return logits at the images' size; normalisation happens inside.

        Args:
          images: RGB, 0-255, any height and width; one compilation a shape.

        Raises:
          DataError: another dtype or shape.
        """
        return _to_nchw(self._run(inference.logits, images))

    def predict(self, images: UInt8[np.ndarray, "n 3 h w"]) -> UInt8[np.ndarray, "n h w"]:
        """Return train ids at the images' size; arguments and errors as in `logits`."""
        return self._run(inference.predict, images)

    def predict_with_confidence(
        self, images: UInt8[np.ndarray, "n 3 h w"]
    ) -> tuple[UInt8[np.ndarray, "n h w"], UInt8[np.ndarray, "n h w"]]:
        """Return what `predict` returns, and the probability of that class, 0 to 255."""
        return self._run(inference.predict_with_confidence, images)

    @functools.cached_property
    def _programs(self) -> Programs:
        return Programs()

    def _run(self, function: Callable[..., Any], images: UInt8[np.ndarray, "n 3 h w"]) -> Any:
        images = require_images(images).transpose(0, 2, 3, 1)
        program = self._programs.get(
            (function, images.shape),
            lambda: compile_program(inference.jit_by_config(function, self.config), self.variables, images),
        )
        return jax.tree.map(np.asarray, program(self.variables, images))


def load(checkpoint: str) -> Segmenter:
    """Load the network of a run (its latest step), of `<run>/best`, or of one step `<run>/checkpoints/<N>`.

    It switches JAX's compilation cache on unless the program configured it; see `compilation.keep_programs`, and
    docs/reliability.md for how to switch it off.

    Raises:
      CheckpointError: there is no checkpoint, or it cannot be read.
    """
    step = str(resolve(checkpoint))
    config = stored_config(step)
    keep_programs()
    return Segmenter(config, jax.device_put(restore_model(step)))


def _to_nchw(logits: Float[np.ndarray, "n h w k"]) -> Float[np.ndarray, "n k h w"]:
    return logits.transpose(0, 3, 1, 2)
