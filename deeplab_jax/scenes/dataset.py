"""Write a small synthetic street scene data set in the Cityscapes layout.

The scenes are drawn by this package, so there is nothing to download and the labels are exact.
"""

import json
import os
import pathlib
import tempfile
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from deeplab_jax.errors import ConfigError, DataError
from deeplab_jax.files import report_write_errors
from deeplab_jax.labels import CITYSCAPES
from deeplab_jax.scenes import IDS, Object, draw_scene

FORMAT = 1  # bump this when the same arguments no longer produce the same images
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
    """Write the data set to `root`, or do nothing if `root` already contains the same data set.

    If writing fails, `root` is not created. A scene depends only on `seed`, `size`, its split and its position in the split, so
    increasing a split's length keeps the existing scenes.

    Args:
      root: A folder that does not exist yet. Missing parent folders are created.
      train: The number of labelled training scenes.
      val: The number of labelled validation scenes.
      test: The number of unlabelled test scenes.
      size: The (height, width) of the images in pixels.
      seed: The random seed. Different seeds produce different scenes.

    Raises:
      ConfigError: A count or the seed is negative, `size` is below 64 x 64, or `root` cannot be written.
      DataError: `root` exists but does not contain the requested data set.
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
                f"{root} exists but does not hold the requested synthetic data set ({record}). "
                "Remove it, or choose a different folder."
            )
        return
    with report_write_errors(epath.Path(root)):
        root.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as scratch:
            complete = pathlib.Path(scratch, "set")
            for number, (split, count) in enumerate(counts.items()):
                _write_split(complete, split, [np.random.default_rng((seed, number, i)) for i in range(count)], size)
            (complete / RECORD).write_text(json.dumps(record) + "\n")
            try:
                complete.rename(root)
            except OSError:
                # Another process might have written the same data set in the meantime.
                if _read_record(root) != record:
                    raise


def _read_record(root: pathlib.Path) -> Any:
    """Return the arguments recorded for the data set in `root`, or None if there is no valid record."""
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
    # The noise hardly compresses, so a higher level would cost time and save little space.
    Image.fromarray(array).save(path, compress_level=1)


def _format_polygons(objects: tuple[Object, ...], size: tuple[int, int]) -> str:
    named = [{"label": label, "polygon": polygon} for label, polygon in objects]
    return json.dumps({"imgHeight": size[0], "imgWidth": size[1], "objects": named})


def make_color_table() -> np.ndarray:
    """Return a uint8 [256, 3] table of official Cityscapes colours, indexed by id. Ids that are never drawn are black."""
    table = np.zeros((256, 3), np.uint8)
    table[list(CITYSCAPES.ids)] = CITYSCAPES.colors
    table[IDS["parking"]], table[IDS["rail track"]], table[IDS["polegroup"]] = (250, 170, 160), (230, 150, 140), (153, 153, 153)
    return table
