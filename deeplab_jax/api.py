"""Load a trained network and run it on images.

The interface takes and returns NCHW arrays, although the network itself uses NHWC.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8

from deeplab_jax.checkpoints.store import resolve, restore_model, stored_config
from deeplab_jax.config import Config
from deeplab_jax.errors import OutOfMemoryError
from deeplab_jax.evaluation import inference
from deeplab_jax.evaluation.pictures import require_images
from deeplab_jax.labels import LabelSet
from deeplab_jax.runtime.canvases import Canvas, Size, place_images, standard_canvas
from deeplab_jax.runtime.compilation import Programs, compile_program, enable_compilation_cache
from deeplab_jax.runtime.memory import report_out_of_memory, require_memory

_MEMORY_ADVICE = "Give fewer or smaller images at a time, or set eval.window in the segmenter's config."
_DEVICE_ADVICE = "Close other programs on the device, or set JAX_PLATFORMS=cpu (docs/how-to/use-a-network.md)."


@dataclasses.dataclass(frozen=True, eq=False)
class Segmenter:
    """A network with its weights, label set and normalisation. It can be copied and pickled. A copy compiles its own programs.

    Attributes:
      config: The run's config. Its `eval` section sets the output stride, windows, scales and flip. Do not modify the config,
        because programs that are already compiled would not reflect the change.
      variables: The network variables, {"params", "batch_stats"}.
    """

    config: Config
    variables: dict[str, Any] = dataclasses.field(repr=False)  # a notebook would print thousands of lines

    @property
    def label_set(self) -> LabelSet:
        """Return the label set, which gives each train id's name and colour."""
        return self.config.labels

    def logits(self, images: UInt8[np.ndarray, "n c h w"]) -> Float[np.ndarray, "n k h w"]:
        """Normalise the images and return their logits at full resolution.

        Args:
          images: Values from 0 to 255, of any height and width, with `config.data.channels` channels, such as RGB. The first
            height and width get a program of their own. All others share the programs of a few standard canvases, with the same
            results up to rounding.

        Raises:
          DataError: The images have the wrong dtype or shape.
          OutOfMemoryError: The images do not fit into memory.
        """
        return self._run_images(inference.logits, images).transpose(0, 3, 1, 2)

    def predict(self, images: UInt8[np.ndarray, "n c h w"]) -> UInt8[np.ndarray, "n h w"]:
        """Return full-resolution train ids. Takes the same arguments and raises the same errors as `logits`."""
        return self._run_images(inference.predict, images)

    def predict_with_confidence(
        self, images: UInt8[np.ndarray, "n c h w"]
    ) -> tuple[UInt8[np.ndarray, "n h w"], UInt8[np.ndarray, "n h w"]]:
        """Return each pixel's train id and its probability, scaled to 0-255."""
        return self._run_images(inference.predict_with_confidence, images)

    def run(self, function: Callable[..., Any], images: Sequence[UInt8[np.ndarray, "h w c"]], canvas: Canvas) -> list[Any]:
        """Return the result of a function of `evaluation.inference` for each image, as NumPy arrays of the image's size.

        If a canvas does not fit into memory, each image is tried alone, because it can be smaller.

        Args:
          function: See `inference.jit_by_config`.
          images: The images, each [h, w, c], unlike in the other methods.
          canvas: A canvas that holds the images.

        Raises:
          OutOfMemoryError: The images do not fit into memory.
        """
        try:
            results = self._run_batch(function, images, canvas)
        except OutOfMemoryError:
            if canvas.is_exact:
                raise
            return [self.run(function, [image], Canvas((image.shape[0], image.shape[1]), True))[0] for image in images]
        return [
            jax.tree.map(lambda x, i=i, image=image: x[i, : image.shape[0], : image.shape[1]], results)
            for i, image in enumerate(images)
        ]

    def compile(self, function: Callable[..., Any], count: int, canvas: Canvas) -> Any:
        """Return the program for a number of images on a canvas, as a function of (variables, images, sizes).

        Takes the same arguments and raises the same errors as `run`.
        """

        def compile_it() -> Any:
            images = jax.ShapeDtypeStruct((count, *canvas.size, self.config.model.channels), np.uint8)
            sizes = None if canvas.is_exact else jax.ShapeDtypeStruct((count, 2), np.int32)
            program = compile_program(inference.jit_by_config(function, self.config), self.variables, images, sizes)
            height, width = canvas.size
            what = f"A batch of {count} image{'s' * (count > 1)} of {width}x{height} pixels"
            require_memory(program, jax.local_devices()[:1], what, _MEMORY_ADVICE)
            return program

        with report_out_of_memory(_MEMORY_ADVICE):
            return self._programs.get((function, count, canvas), compile_it)

    def _run_batch(self, function: Callable[..., Any], images: Sequence[UInt8[np.ndarray, "h w c"]], canvas: Canvas) -> Any:
        """Return the result of a function for arrays of the size of the canvas."""
        placed, sizes = place_images(images, canvas.size)
        with report_out_of_memory(_MEMORY_ADVICE):
            program = self.compile(function, len(images), canvas)
            return jax.tree.map(np.asarray, program(self.variables, placed, None if canvas.is_exact else sizes))

    def __getstate__(self) -> dict[str, Any]:
        # Leave out the compiled programs, which cannot be copied.
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @functools.cached_property
    def _programs(self) -> Programs:
        return Programs()

    @functools.cached_property
    def _exact_sizes(self) -> list[Size]:
        return []  # the first size, once an image has been seen

    def _run_images(self, function: Callable[..., Any], images: UInt8[np.ndarray, "n c h w"]) -> Any:
        batch = list(require_images(images, self.config.model.channels).transpose(0, 2, 3, 1))
        height, width = size = (batch[0].shape[0], batch[0].shape[1])
        if not self._exact_sizes:
            self._exact_sizes.append(size)
        if size == self._exact_sizes[0]:
            return self._run_batch(function, batch, Canvas(size, True))
        try:
            results = self._run_batch(function, batch, standard_canvas(size))
        except OutOfMemoryError:
            return self._run_batch(function, batch, Canvas(size, True))
        return jax.tree.map(lambda x: x[:, :height, :width], results)


def load(checkpoint: str | os.PathLike[str]) -> Segmenter:
    """Load a trained network.

    This also enables JAX's compilation cache, unless the program has already configured it (see
    `compilation.enable_compilation_cache`). To disable the cache, see docs/reference/compilation-cache.md.

    Args:
      checkpoint: A run folder (the latest step is used), `<run>/best`, or a step folder such as `<run>/checkpoints/<N>`.

    Raises:
      CheckpointError: The checkpoint does not exist or cannot be read, or the path is something else.
    """
    step = str(resolve(checkpoint))
    config = stored_config(step)
    enable_compilation_cache()
    with report_out_of_memory(_DEVICE_ADVICE):
        return Segmenter(config, jax.device_put(restore_model(step, given=checkpoint)))
