"""Run a network on many images and videos.

Images of different sizes share standard canvases to limit the number of compiled programs. Files are read and written while the
network runs.
"""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import warnings
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import jax
import numpy as np
from etils import epath
from jaxtyping import Float, UInt8
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from deeplab_jax.api import Segmenter
from deeplab_jax.data.decode import convert_bands
from deeplab_jax.errors import ConfigError, DataError, OutOfMemoryError
from deeplab_jax.evaluation import inference, pictures
from deeplab_jax.evaluation.windows import slide_in_strips
from deeplab_jax.labels import LabelSet
from deeplab_jax.predict import inputs as files
from deeplab_jax.predict import video
from deeplab_jax.predict.inputs import Input
from deeplab_jax.runtime.canvases import Canvas, Size, choose_standard_canvases, describe_canvases
from deeplab_jax.runtime.compilation import compiling_ahead, estimate_compile_pixels
from deeplab_jax.runtime.parallel import map_ahead
from deeplab_jax.runtime.work_shard import EVERYTHING, WorkShard

T = TypeVar("T")

# The window size for images that are too large for one program.
WINDOW = (768, 768)
# The target number of pixels per batch. Smaller batches would not keep an accelerator busy.
BATCH_PIXELS = 2**20
LONG_VIDEO = 1000  # the assumed number of frames in a video that does not say how many it has


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """The output and batching options.

    Attributes:
      out: The folder for {train_ids,color,overlay,confidence}/<name>.png and, for a video, overlay/<name>.mp4.
      confidence: Whether to also write each pixel's largest class probability, scaled to 0-255.
      opacity: The opacity of the colours in overlays, from 0 to 1.
      batch_size: The number of images per batch. If 0, use 1 on a CPU and otherwise as many images as fit in about a million
        pixels, between 1 and 8.
      max_pixels: The largest image, in pixels, to process in one piece. Larger images are processed in 768x768 windows to limit
        memory use.
      shard: This process's share of the batches and videos. It does not change what is in a batch, so the results are those of
        one process to the bit.

    Raises:
      ConfigError: A number is out of range.
    """

    out: str
    confidence: bool = False
    opacity: float = 0.5
    batch_size: int = 0
    max_pixels: int = 2**22
    shard: WorkShard = EVERYTHING

    def __post_init__(self) -> None:
        if not 0 <= self.opacity <= 1:
            raise ConfigError(f"`--opacity` (={self.opacity:g}) cannot be used. Use a number from 0 to 1.")
        if self.batch_size < 0:
            raise ConfigError(f"`--batch-size` (={self.batch_size}) is negative. Use 1 or more, or 0 to choose automatically.")
        if self.max_pixels < 1:
            raise ConfigError(f"`--max-pixels` (={self.max_pixels}) cannot be used. Use 1 or more.")


Group = tuple[Canvas, int]  # the arrays of a batch and the number of images per batch
Prediction = tuple[UInt8[np.ndarray, "h w"], UInt8[np.ndarray, "h w"] | None]  # train ids, and a second array (see `Output`)


@dataclasses.dataclass(frozen=True, slots=True)
class Output:
    """What to compute for each image, and how to write it.

    Attributes:
      function: A function of `evaluation.inference` that returns train ids, alone or with a second array of the same type.
      second: For windows, a function that computes the second array from the train ids and their probabilities, or None.
      write: A function that writes the prediction for an input, whose pixels are None for a frame of a video.
    """

    function: Callable[..., Any]
    second: Callable[[UInt8[np.ndarray, "h w"], Float[np.ndarray, "h w"]], UInt8[np.ndarray, "h w"]] | None
    write: Callable[[Input, UInt8[np.ndarray, "h w c"] | None, Prediction], None]


@dataclasses.dataclass(frozen=True, slots=True)
class Share:
    """What `run` did.

    Attributes:
      count: The number of inputs in `Options.shard`, including unreadable ones.
      plan: A digest of how all inputs were divided. Shards with different plans, for example because one of them could not read
        the size of an image, might miss some inputs.
    """

    count: int
    plan: str


def make_picture_output(label_set: LabelSet, options: Options) -> Output:
    """Return the output that `Options.out` describes."""

    def write(each: Input, image: UInt8[np.ndarray, "h w c"] | None, prediction: Prediction) -> None:
        ids, confidence = prediction
        pictures.write_pictures(
            options.out, each.name, label_set, ids, image=image, confidence=confidence, opacity=options.opacity
        )

    if not options.confidence:
        return Output(inference.predict, None, write)
    return Output(
        inference.predict_with_confidence, lambda ids, probability: np.round(255 * probability).astype(np.uint8), write
    )


def run(
    segmenter: Segmenter,
    inputs: Sequence[Input],
    options: Options,
    console: Console,
    fail: Callable[[str], None],
    output: Output | None = None,
) -> Share:
    """Run the network on the inputs and write the results. Unreadable inputs are reported and skipped.

    Args:
      segmenter: The network to run.
      inputs: The images and videos, from `find_inputs`.
      options: The output and batching options.
      console: The console for the progress bar.
      fail: A function called with a one-line message for each failed input.
      output: What to compute and write. If None, write pictures.

    Raises:
      ConfigError: A result cannot be written, or the inputs include videos but PyAV is not installed or the network does not
        read grey or RGB images.
    """
    images, videos = ([each for each in inputs if files.is_video(each.path) is wanted] for wanted in (False, True))
    if videos:
        video.require_channels(segmenter.config.data.channels)
        video.require_av()
    output = output or make_picture_output(segmenter.label_set, options)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        # Pillow warns about large images, which are processed in windows, and about broken metadata, which is harmless.
        warnings.simplefilter("ignore")
        progress = stack.enter_context(Progress(*columns, console=console, disable=not console.is_terminal, transient=True))
        share = _run_images(segmenter, images, options, output, progress, fail)
        own_videos = options.shard.take(videos)
        for each in own_videos:
            with _report_errors(fail):
                _run_video(segmenter, each, options, output, progress)
    return dataclasses.replace(share, count=share.count + len(own_videos))


def _run_images(
    segmenter: Segmenter,
    images: Sequence[Input],
    options: Options,
    output: Output,
    progress: Progress,
    fail: Callable[[str], None],
) -> Share:
    data = segmenter.config.data
    sizes: dict[Input, Size] = {}
    failures: list[str] = []
    for each in images:  # of all shards, because the sizes of all images determine the canvases
        with _report_errors(failures.append):
            sizes[each] = files.read_size(each.path)
    failures = options.shard.take(failures)
    for line in failures:
        fail(line)
    groups, summary = group_by_canvas(sizes, options)
    if summary:
        progress.console.print(summary, markup=False)
    batches: list[tuple[tuple[Input, ...], Group]] = []
    for group, members in groups.items():
        batches += [(batch, group) for batch in _batches(members, group[1])]
    plan = repr([([each.name for each in batch], group) for batch, group in batches])
    batches = options.shard.take(batches)
    count = sum(len(batch) for batch, _ in batches)
    task = progress.add_task("images", total=count)

    def load(batch: Sequence[Input]) -> list[tuple[Input, np.ndarray]]:
        loaded = []
        for each in batch:
            with _report_errors(fail):
                loaded.append((each, files.read_image(each.path, data.channels, data.value_range)))
        return loaded

    compilations = [
        functools.partial(segmenter.compile, output.function, at_a_time, canvas)
        for canvas, at_a_time in dict.fromkeys(group for _, group in batches)
        if not (canvas.is_exact and _is_large(canvas.size, options))
    ]
    with compiling_ahead(compilations), ThreadPoolExecutor(2) as readers, ThreadPoolExecutor(2) as writers:
        ahead = map_ahead(readers, load, [batch for batch, _ in batches], 2)
        pending: deque[Future[None]] = deque()
        for (batch, group), loaded in zip(batches, ahead, strict=True):
            for each, image, prediction in _predict(segmenter, loaded, group, options, output):
                pending.append(writers.submit(output.write, each, image, prediction))
            # A large image takes most of a GiB until it is written.
            is_large = any(image.shape[0] * image.shape[1] > options.max_pixels for _, image in loaded)
            while len(pending) > (1 if is_large else 4 * group[1]):
                pending.popleft().result()
            progress.advance(task, len(batch))
        for future in pending:
            future.result()
    return Share(count + len(failures), hashlib.sha256(plan.encode(errors="surrogateescape")).hexdigest())


def _predict(
    segmenter: Segmenter, loaded: Sequence[tuple[Input, np.ndarray]], group: Group, options: Options, output: Output
) -> Iterator[tuple[Input, np.ndarray, Prediction]]:
    groups = defaultdict(list)  # the size in the file header can be wrong
    for each, image in loaded:
        size = (image.shape[0], image.shape[1])
        groups[group if group[0].holds(size) else (Canvas(size, True), 1)].append((each, image))
    for (canvas, at_a_time), members in groups.items():
        images = [image for _, image in members]
        if canvas.is_exact and _is_large(canvas.size, options):
            predictions = [_predict_in_windows(segmenter, image, options, output) for image in images]
        else:
            # Pad the last batch with copies of its last image, because a smaller batch would require compiling another program.
            batch = images + images[-1:] * (at_a_time - len(images))
            with _explain_memory(members[0][0], at_a_time, options):
                results = segmenter.run(output.function, batch, canvas)
            predictions = [each if isinstance(each, tuple) else (each, None) for each in results]
        yield from ((each, image, result) for (each, image), result in zip(members, predictions, strict=False))


@contextlib.contextmanager
def _explain_memory(first: Input, at_a_time: int, options: Options) -> Iterator[None]:
    """Add the file's name and the command's flags to an error about memory."""
    try:
        yield
    except OutOfMemoryError as error:
        fewer = f"--batch-size 1 (it is {at_a_time}), or " if at_a_time > 1 else ""
        advice = f"Use {fewer}a smaller --max-pixels (={options.max_pixels}): larger images are processed in windows."
        raise OutOfMemoryError(f"{first.path} cannot be processed. {error.reason}", advice) from error


def _predict_in_windows(
    segmenter: Segmenter, image: UInt8[np.ndarray, "h w c"], options: Options, output: Output
) -> Prediction:
    def logits(windows: UInt8[np.ndarray, "n h w c"]) -> Float[np.ndarray, "n h w k"]:
        # An image that is lower or narrower than a window does not fill it.
        return np.stack(segmenter.run(inference.logits, list(windows), Canvas(WINDOW, windows.shape[1:3] == WINDOW)))

    ids = np.empty(image.shape[:2], np.uint8)
    second = np.empty_like(ids) if output.second else None
    for top, strip in slide_in_strips(logits, image, window=WINDOW, batch_size=max(options.batch_size, 1)):
        rows = slice(top, top + len(strip))
        ids[rows] = strip.argmax(-1)
        if output.second and second is not None:
            strip -= strip.max(-1, keepdims=True)
            second[rows] = output.second(ids[rows], 1 / np.exp(strip).sum(-1))
    return ids, second


def batch_size(size: Size, options: Options) -> int:
    """Return how many images of the given (height, width) to put in a batch."""
    if _is_large(size, options):
        return 1
    is_cpu = jax.default_backend() == "cpu"  # CPUs process single images just as fast
    return options.batch_size or (1 if is_cpu else min(max(BATCH_PIXELS // (size[0] * size[1]), 1), 8))


def group_by_canvas(sizes: Mapping[T, Size], options: Options) -> tuple[dict[Group, list[T]], str]:
    """Return the images grouped by their arrays, and a sentence about the number of programs.

    Args:
      sizes: The images' heights and widths. Images above `options.max_pixels` are in groups of their own size.
      options: The batching options.
    """
    counts = Counter(size for size in sizes.values() if not _is_large(size, options))
    canvases = choose_standard_canvases(counts, compile_pixels=estimate_compile_pixels()) if counts else {}
    members: dict[Canvas, list[T]] = defaultdict(list)
    for each, size in sizes.items():
        members[canvases.get(size, Canvas(size, True))].append(each)
    groups = {}
    for canvas, group in members.items():
        at_a_time = batch_size(canvas.size, options)
        groups[canvas, min(at_a_time, len(group)) if options.batch_size else at_a_time] = group
    return groups, describe_canvases(counts, canvases) if counts else ""


def _is_large(size: Size, options: Options) -> bool:
    return size[0] * size[1] > options.max_pixels


def _batches(items: Iterable[T], size: int) -> Iterator[tuple[T, ...]]:
    iterator = iter(items)
    while batch := tuple(itertools.islice(iterator, size)):
        yield batch


def _run_video(segmenter: Segmenter, each: Input, options: Options, output: Output, progress: Progress) -> None:
    data, overlay = segmenter.config.data, epath.Path(options.out) / "overlay" / each.video_name
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(video.open_video(each.path))
        task = progress.add_task(each.path.name, total=source.count or None)
        first = next(source.frames, None)
        if first is None:
            raise DataError(f"{each.path} does not contain any frames. Replace the file.")
        size = (first[1].shape[0], first[1].shape[1])
        canvases = choose_standard_canvases({size: source.count or LONG_VIDEO}, compile_pixels=estimate_compile_pixels())
        canvas = Canvas(size, True) if _is_large(size, options) else canvases[size]
        at_a_time = batch_size(size, options)
        add = stack.enter_context(video.write_video(overlay, size, source.fps, source.pixel_aspect))
        writers = stack.enter_context(ThreadPoolExecutor(2))
        count = 0
        for batch in _batches(itertools.chain([first], source.frames), at_a_time):
            pixels = [convert_bands(frame, data.channels, data.value_range) for _, frame in batch]
            named = [(Input(each.path, f"{each.name}/{count + i:06d}"), x) for i, x in enumerate(pixels)]
            count += len(batch)
            written = []
            predicted = _predict(segmenter, named, (canvas, at_a_time), options, output)
            for (time, _), (frame, image, prediction) in zip(batch, predicted, strict=True):
                add(time, pictures.overlay(image, prediction[0], segmenter.label_set, options.opacity))
                written.append(writers.submit(output.write, frame, None, prediction))
            for future in written:
                future.result()
            progress.advance(task, len(batch))
    pictures.remove_later_frames(options.out, each.name, count)
    if source.damaged:
        raise DataError(
            f"{each.path} has damaged parts ({source.damaged}). Some frames are missing from the results or look wrong. "
            "Replace the file if you can."
        )


@contextlib.contextmanager
def _report_errors(fail: Callable[[str], None]) -> Iterator[None]:
    try:
        yield
    except DataError as error:
        fail(str(error))
