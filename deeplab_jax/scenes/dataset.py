"""Write a small data set of street scenes in the Cityscapes layout.

The scenes are drawn by this package, so there is nothing to download and the labels are exact.
"""

import json
import os
import pathlib
import tempfile
from typing import Any

import numpy as np
from PIL import Image

from deeplab_jax.errors import ConfigError, DataError
from deeplab_jax.labels import CITYSCAPES
from deeplab_jax.scenes import IDS, Object, Scene, draw_scene

__all__ = ["Scene", "draw_scene", "write"]

FORMAT = 1  # bump this version when the same arguments produce different images
RECORD = "synthetic.json"
CITIES = {"train": ("polygonburg", "vectorstadt"), "val": ("rasterheim",), "test": ("canvasdorf",)}


def write(
    root: str | os.PathLike[str],
    *,
    train: int = 128,
    val: int = 24,
    test: int = 8,
    size: tuple[int, int] = (192, 384),
    seed: int = 0,
) -> None:
    """Write the data set to `root`, or do nothing if `root` already holds the same data set.

    If writing fails, `root` is not created. A scene depends only on `seed`, its split, its number and `size`. A longer split
    therefore starts with the scenes of a shorter one.

    Args:
      root: A folder that does not exist yet. Missing parent folders are created.
      train: The number of training scenes, which have labels.
      val: The number of validation scenes, which have labels.
      test: The number of test scenes, which have no labels.
      size: The (height, width) of the images in pixels.
      seed: The random seed. Different seeds produce different scenes.

    Raises:
      ConfigError: A count or the seed is negative, or `size` is below 64 x 64.
      DataError: `root` exists and does not hold the data set that these arguments describe.
    """
    counts = {"train": train, "val": val, "test": test}
    for name, value in {**counts, "seed": seed}.items():
        if value < 0:
            raise ConfigError(f"`{name}` (={value}) is negative. Use 0 or more.")
    if min(size) < 64:
        raise ConfigError(f"`size` (={size}) is too small to draw a street. Use a (height, width) of at least (64, 64).")
    record = {"format": FORMAT, **counts, "size": list(size), "seed": seed}
    root = pathlib.Path(root)
    if root.exists():
        if _read_record(root) != record:
            raise DataError(
                f"{root} exists and does not hold the requested synthetic data set ({record}). "
                "Remove it, or choose a different folder."
            )
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as scratch:
        complete = pathlib.Path(scratch, "set")
        for number, (split, count) in enumerate(counts.items()):
            _write_split(complete, split, [np.random.default_rng((seed, number, i)) for i in range(count)], size)
        (complete / RECORD).write_text(json.dumps(record) + "\n")
        try:
            complete.rename(root)
        except OSError:
            # A different process may have written the same data set in the meantime.
            if _read_record(root) != record:
                raise


def _read_record(root: pathlib.Path) -> Any:
    """Return the arguments that the data set in `root` was made with, or None if `root` does not hold such a data set."""
    try:
        return json.loads((root / RECORD).read_text())
    except (OSError, ValueError):
        return None


def _write_split(root: pathlib.Path, split: str, rngs: list[np.random.Generator], size: tuple[int, int]) -> None:
    lines = []
    for i, rng in enumerate(rngs):
        city = CITIES[split][i % len(CITIES[split])]
        frame = f"{split}/{city}/{city}_{i:06d}_000019"
        image, target = f"leftImg8bit/{frame}_leftImg8bit.png", f"gtFine/{frame}_gtFine"
        scene = draw_scene(rng, size)
        _save(scene.image, root / image)
        if split != "test":
            _save(scene.label_ids, root / f"{target}_labelIds.png")
            _save(make_color_table()[scene.label_ids], root / f"{target}_color.png")
            _save(scene.instance_ids, root / f"{target}_instanceIds.png")
            (root / f"{target}_polygons.json").write_text(_format_polygons(scene.objects, size))
        lines.append(image if split == "test" else f"{image}\t{target}_labelIds.png")
    path = root / "list" / f"{split}.lst"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def _save(array: np.ndarray, path: pathlib.Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(
        path, compress_level=1
    )  # the noise hardly compresses, so a higher level costs time and saves little


def _format_polygons(objects: tuple[Object, ...], size: tuple[int, int]) -> str:
    named = [{"label": label, "polygon": polygon} for label, polygon in objects]
    return json.dumps({"imgHeight": size[0], "imgWidth": size[1], "objects": named})


def make_color_table() -> np.ndarray:
    """Return the official Cityscapes colour of each id that is drawn, uint8 [256, 3]. All other ids are black."""
    table = np.zeros((256, 3), np.uint8)
    table[list(CITYSCAPES.ids)] = CITYSCAPES.colors
    table[IDS["parking"]], table[IDS["rail track"]], table[IDS["polegroup"]] = (250, 170, 160), (230, 150, 140), (153, 153, 153)
    return table
