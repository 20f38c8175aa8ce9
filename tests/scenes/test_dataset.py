import json
import pathlib

import numpy as np
import pytest
from conftest import read_pixels
from PIL import Image, ImageDraw

from deeplab_jax.errors import ConfigError, DataError
from deeplab_jax.labels import CITYSCAPES
from deeplab_jax.scenes import IDS, THINGS, Scene, draw_scene
from deeplab_jax.scenes import dataset as synthetic

SMALL = {"train": 3, "val": 2, "test": 1, "size": (64, 128)}


def draw(i: int = 0, size: tuple[int, int] = (128, 256), split: int = 0) -> Scene:
    return draw_scene(np.random.default_rng((0, split, i)), size)


def read_files(root: pathlib.Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def paint(objects: list[tuple[str, list]], size: tuple[int, int]) -> np.ndarray:
    image = Image.new("L", (size[1], size[0]))
    for label, polygon in objects:
        ImageDraw.Draw(image).polygon([tuple(p) for p in polygon], fill=IDS[label])
    return np.asarray(image)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("data") / "new" / "streets"
    synthetic.write(path, **SMALL)
    return path


def test_the_files_follow_the_cityscapes_layout(root):
    def list_names(split, city, i, has_labels):
        frame = f"{split}/{city}/{city}_00000{i}_000019"
        kinds = ("color.png", "instanceIds.png", "labelIds.png", "polygons.json") if has_labels else ()
        return {f"leftImg8bit/{frame}_leftImg8bit.png"} | {f"gtFine/{frame}_gtFine_{kind}" for kind in kinds}

    expected = {"synthetic.json", "list/train.lst", "list/val.lst", "list/test.lst"}
    expected |= (
        list_names("train", "polygonburg", 0, True)
        | list_names("train", "vectorstadt", 1, True)
        | list_names("train", "polygonburg", 2, True)
    )
    expected |= (
        list_names("val", "rasterheim", 0, True)
        | list_names("val", "rasterheim", 1, True)
        | list_names("test", "canvasdorf", 0, False)
    )
    assert set(read_files(root)) == expected
    assert [p.name for p in root.parent.iterdir()] == [root.name]  # the temporary folder has been removed


def test_the_lists_name_the_files(root):
    assert (root / "list/val.lst").read_text() == "".join(
        f"leftImg8bit/val/rasterheim/rasterheim_00000{i}_000019_leftImg8bit.png"
        f"\tgtFine/val/rasterheim/rasterheim_00000{i}_000019_gtFine_labelIds.png\n"
        for i in (0, 1)
    )
    assert (root / "list/test.lst").read_text() == "leftImg8bit/test/canvasdorf/canvasdorf_000000_000019_leftImg8bit.png\n"
    for line in (root / "list/train.lst").read_text().splitlines():
        assert all((root / name).is_file() for name in line.split("\t"))


def test_files_have_the_same_types_as_in_cityscapes(root):
    stem = root / "gtFine/val/rasterheim/rasterheim_000001_000019_gtFine"
    image = read_pixels(root / "leftImg8bit/val/rasterheim/rasterheim_000001_000019_leftImg8bit.png")
    expected = draw(1, SMALL["size"], split=1)
    assert (image.dtype, image.shape) == (np.uint8, (64, 128, 3))
    np.testing.assert_array_equal(image, expected.image)
    ids = read_pixels(f"{stem}_labelIds.png")
    assert ids.dtype == np.uint8
    np.testing.assert_array_equal(ids, expected.label_ids)
    instances = read_pixels(f"{stem}_instanceIds.png")
    assert instances.dtype == np.uint16
    np.testing.assert_array_equal(instances, expected.instance_ids)
    annotation = json.loads(pathlib.Path(f"{stem}_polygons.json").read_text())
    assert (annotation["imgHeight"], annotation["imgWidth"]) == (64, 128)
    assert [(o["label"], o["polygon"]) for o in annotation["objects"]] == list(expected.objects)


def test_colors_are_the_official_cityscapes_colors(root):
    official = dict(zip(CITYSCAPES.ids, CITYSCAPES.colors, strict=True)) | {1: (0, 0, 0), 4: (0, 0, 0)}
    official |= {9: (250, 170, 160), 10: (230, 150, 140), 18: (153, 153, 153)}
    for path in root.glob("gtFine/*/*/*_labelIds.png"):
        ids, color = read_pixels(path), read_pixels(str(path).replace("labelIds", "color"))
        assert color.shape == (*ids.shape, 3)
        for i in np.unique(ids):
            assert (color[ids == i] == official[i]).all()


def test_the_label_set_contains_every_id():
    assert set(IDS.values()) <= set(CITYSCAPES.ids + CITYSCAPES.ignored_ids)


def test_the_same_arguments_give_the_same_bytes_and_a_different_seed_gives_different_ones(root, tmp_path):
    synthetic.write(tmp_path / "again", **SMALL)
    synthetic.write(tmp_path / "other", **SMALL, seed=1)
    first, again, other = read_files(root), read_files(tmp_path / "again"), read_files(tmp_path / "other")
    assert again == first
    assert other.keys() == first.keys()
    assert not [name for name in first if not name.startswith("list/") and other[name] == first[name]]


def test_a_longer_split_starts_with_the_scenes_of_a_shorter_one(root, tmp_path):
    synthetic.write(tmp_path / "longer", **{**SMALL, "train": 4})
    shorter, longer = read_files(root), read_files(tmp_path / "longer")
    assert {name: longer[name] for name in shorter if name.startswith(("left", "gt"))} == {
        name: data for name, data in shorter.items() if name.startswith(("left", "gt"))
    }


def test_a_second_call_writes_nothing(root):
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*")}
    synthetic.write(str(root), **SMALL)
    assert {p: p.stat().st_mtime_ns for p in root.rglob("*")} == before


@pytest.mark.parametrize("name", ["other arguments", "a foreign folder", "a broken record", "a file"])
def test_an_existing_path_that_is_not_the_same_data_set_is_an_error_and_stays_unchanged(name, tmp_path):
    path = tmp_path / name
    if name == "other arguments":
        synthetic.write(path, train=0, val=0, test=0)
    elif name == "a file":
        path.write_text("mine")
    else:
        path.mkdir()
        (path / ("thesis.tex" if "folder" in name else "synthetic.json")).write_text("{")
    before = read_files(tmp_path)
    with pytest.raises(
        DataError, match=r"exists but does not hold the requested synthetic data set .*\. Remove it, or choose"
    ) as error:
        synthetic.write(path, **SMALL)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert read_files(tmp_path) == before


def test_a_folder_that_cannot_be_created_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"^Cannot write .*file/x/y: Not a directory\."):
        synthetic.write(tmp_path / "file" / "x" / "y", train=0, val=0, test=0)


def test_an_interrupted_call_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(synthetic, "_format_polygons", interrupt)
    with pytest.raises(KeyboardInterrupt):
        synthetic.write(tmp_path / "set", **SMALL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [{"train": -1}, {"seed": -1}, {"size": (32, 128)}])
def test_the_error_for_an_invalid_argument_names_it(wrong, tmp_path):
    with pytest.raises(ConfigError, match=f"`{next(iter(wrong))}`"):
        synthetic.write(tmp_path / "set", **{**SMALL, **wrong})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("split", [0, 1])
def test_no_class_is_too_rare(split):
    counts = np.array([np.bincount(draw(i, split=split).label_ids.ravel(), minlength=256) for i in range(24)])
    classes = counts[:, list(CITYSCAPES.ids)]
    rare = [n for n, share in zip(CITYSCAPES.names, classes.sum(0) / counts.sum(), strict=True) if share < 0.003]
    seldom = [n for n, share in zip(CITYSCAPES.names, (classes > 0).mean(0), strict=True) if share < 0.35]
    assert (rare, seldom) == ([], [])
    ignored = 1 - classes.sum() / counts.sum()
    assert 0.01 < ignored < 0.15


@pytest.mark.parametrize("size", [(64, 64), (128, 256), (200, 333), (256, 512), (512, 1024)])
def test_painting_the_polygons_reproduces_the_labels_at_every_size(size):
    for i in range(2):
        drawn = draw(i, size)
        assert drawn.image.shape == (*size, 3)
        np.testing.assert_array_equal(paint(drawn.objects, size), drawn.label_ids)


def test_objects_scale_with_the_image_size():
    small, large = draw(5, (128, 256)).label_ids, draw(5, (512, 1024)).label_ids
    assert (large[2::4, 2::4] == small).mean() > 0.93


def test_instances_are_numbered_as_in_cityscapes():
    things = {IDS[name] for name in THINGS}
    seen = set()
    for i in range(4):
        drawn = draw(i)
        instances = drawn.instance_ids.astype(int)
        counted = np.isin(drawn.label_ids, list(things))
        np.testing.assert_array_equal(instances[counted] // 1000, drawn.label_ids[counted])
        np.testing.assert_array_equal(instances[~counted], drawn.label_ids[~counted])
        for name in THINGS:
            numbers = np.unique(instances[drawn.label_ids == IDS[name]]) - 1000 * IDS[name]
            assert set(numbers) <= set(range(sum(label == name for label, _ in drawn.objects)))
            seen |= {(name, number) for number in numbers.tolist()}
    assert {name for name, _ in seen} == set(THINGS)
    assert max(number for _, number in seen) >= 1
