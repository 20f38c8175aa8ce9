"""What every annotation tool is read into: images, each with the shapes drawn on it, and notes on what could not be used."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

from deeplab_jax.data.importers.figures import Figure
from deeplab_jax.labels import Color


@dataclasses.dataclass(frozen=True, slots=True)
class Shape:
    """A region of an image and its class.

    Attributes:
      name: The class name, or None if the pixels of the region must be ignored.
      figure: The region.
    """

    name: str | None
    figure: Figure


@dataclasses.dataclass(frozen=True, slots=True)
class Annotation:
    """An image and the shapes drawn on it.

    Attributes:
      image: The image file. If `embedded` is set, the file that contains the image.
      split: train, val or test.
      name: The image's path below the split folder, with "/" between folders.
      shapes: The shapes in drawing order: where two overlap, the later one is on top.
      size: The (height, width) in pixels that the tool recorded, or None.
      unusable: Why the image has to be left out, as a kind of note, or "".
      embedded: Returns the bytes of an image that is stored inside the annotation file, or None for an image file.
    """

    image: Path
    split: str
    name: str
    shapes: tuple[Shape, ...]
    size: tuple[int, int] | None = None
    unusable: str = ""
    embedded: Callable[[], bytes] | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class AnnotationSet:
    """The annotations of one data set.

    Attributes:
      classes: The colour of each class, or None if the tool does not give one, in the order of the tool.
      annotations: The annotated images.
      is_turned: Whether the tool draws on the image as its EXIF orientation turns it, or None if that is unknown.
    """

    classes: dict[str, Color | None]
    annotations: list[Annotation]
    is_turned: bool | None = None


class Notes:
    """What was left out or changed: for each kind of problem, how often it occurred, and its first example."""

    def __init__(self) -> None:
        self._kinds: dict[str, tuple[int, str]] = {}

    def add(self, kind: str, example: object, count: int = 1) -> None:
        """Record `count` problems of one kind. Only the first example of a kind is kept."""
        before, first = self._kinds.get(kind, (0, str(example)))
        self._kinds[kind] = (before + count, first)

    def lines(self) -> Iterator[str]:
        """Yield one line for each kind of problem."""
        for kind, (count, example) in self._kinds.items():
            yield f"{kind} ({count}), for example {example}"

    def counts(self) -> dict[str, int]:
        """Return the number of problems of each kind."""
        return {kind: count for kind, (count, _) in self._kinds.items()}
