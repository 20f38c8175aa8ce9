"""A small street-scene data set in the layout of Cityscapes, drawn by the project itself: nothing to download, exact labels."""

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

FORMAT = 1  # bump it when the same arguments give other pictures
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
    """Write the set to `root`, or return at once where `root` holds it already.

    The set appears whole or not at all. A scene depends on `seed`, its split and its number alone: a longer split begins with
    the scenes of a shorter one.

    Args:
      root: a folder that does not exist yet; its parents are made.
      train: how many scenes; these and those of `val` come with labels.
      val: how many scenes.
      test: how many scenes; images only.
      size: (height, width) of the images in pixels.
      seed: another seed, other scenes.

    Raises:
      ConfigError: a count is negative, `size` is below 64 x 64, or the seed is negative.
      DataError: `root` exists and is not the set that these arguments describe.
    """
    counts = {"train": train, "val": val, "test": test}
    for name, value in {**counts, "seed": seed}.items():
        if value < 0:
            raise ConfigError(f"`{name}` (={value}) is negative: give 0 or more")
    if min(size) < 64:
        raise ConfigError(f"`size` (={size}) is too small to draw a street: give at least (64, 64), (height, width)")
    record = {"format": FORMAT, **counts, "size": list(size), "seed": seed}
    root = pathlib.Path(root)
    if root.exists():
        if _record(root) != record:
            raise DataError(
                f"{root} exists and is not the synthetic set asked for ({record}): remove it, or name another folder"
            )
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as scratch:
        whole = pathlib.Path(scratch, "set")
        for number, (split, count) in enumerate(counts.items()):
            _write_split(whole, split, [np.random.default_rng((seed, number, i)) for i in range(count)], size)
        (whole / RECORD).write_text(json.dumps(record) + "\n")
        try:
            whole.rename(root)
        except OSError:
            if _record(root) != record:  # unless another process was faster, and wrote the same
                raise


def _record(root: pathlib.Path) -> Any:
    """Return the arguments that the set at `root` was made with; None where there is no such set."""
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
            _save(colors()[scene.label_ids], root / f"{target}_color.png")
            _save(scene.instance_ids, root / f"{target}_instanceIds.png")
            (root / f"{target}_polygons.json").write_text(_polygons(scene.objects, size))
        lines.append(image if split == "test" else f"{image}\t{target}_labelIds.png")
    path = root / "list" / f"{split}.lst"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def _save(array: np.ndarray, path: pathlib.Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, compress_level=1)  # grain does not compress: more effort costs time and saves little


def _polygons(objects: tuple[Object, ...], size: tuple[int, int]) -> str:
    named = [{"label": label, "polygon": polygon} for label, polygon in objects]
    return json.dumps({"imgHeight": size[0], "imgWidth": size[1], "objects": named})


def colors() -> np.ndarray:
    """Return uint8 [256, 3]: the official colour of each id that is drawn; black where Cityscapes has black."""
    table = np.zeros((256, 3), np.uint8)
    table[list(CITYSCAPES.ids)] = CITYSCAPES.colors
    table[IDS["parking"]], table[IDS["rail track"]], table[IDS["polegroup"]] = (250, 170, 160), (230, 150, 140), (153, 153, 153)
    return table
