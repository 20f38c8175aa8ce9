import numpy as np
import pytest
from PIL import Image

from deeplab_jax.data import evaluation
from deeplab_jax.data.evaluation import eval_batches, plan_evaluation
from deeplab_jax.data.find import find_samples
from deeplab_jax.errors import DataError
from deeplab_jax.labels import CITYSCAPES, LabelSet

PLAIN = LabelSet("plain", ("a", "b", "c"), ((1, 0, 0), (0, 1, 0), (0, 0, 1)))


def are_equal(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def write_images(folder, sizes):
    """Write a split of images of the given widths and heights, in which image i has the value i everywhere."""
    (folder / "input").mkdir()
    for i, size in enumerate(sizes):
        Image.new("RGB", size, (i, i, i)).save(folder / "input" / f"{i}.png")
    (folder / "list").mkdir()
    (folder / "list" / "test.lst").write_text("".join(f"input/{i}.png\n" for i in range(len(sizes))))
    return find_samples(str(folder), "test", need_labels=False)


def test_evaluation_yields_every_image_once_at_its_original_size(tmp_path):
    sizes = [(20, 10), (90, 10), (20, 10), (20, 10), (20, 10)]
    samples = write_images(tmp_path, sizes)
    assert plan_evaluation(samples, 3).batches == [[0, 2, 3], [4], [1]]
    seen = []
    for batch in eval_batches(samples, PLAIN, 3):
        assert "label" not in batch
        for image, index, valid in zip(batch["image"], batch["index"], batch["valid"], strict=True):
            if valid:
                seen.append(int(index))
                assert image.shape[1::-1] == sizes[index]
                assert (image == index).all()
        assert "size" not in batch
    assert sorted(seen) == [0, 1, 2, 3, 4]


def test_images_of_different_sizes_share_a_batch(tmp_path):
    sizes = [(20, 10), (31, 9), (200, 3), (20, 12), (5, 40)]
    samples = write_images(tmp_path, sizes)
    assert plan_evaluation(samples, 2, 10**4).summary.startswith(
        "The 5 image sizes need 2 compiled programs. 83% of "
    )  # 1 - 1519 / 8792
    seen = []
    for batch in eval_batches(samples, PLAIN, 2, compile_pixels=10**4):
        is_alone = batch["index"][0] == 2  # a canvas with images of one size only has that size
        assert batch["image"].shape[1:3] == ((3, 200) if is_alone else (64, 32))
        assert ("size" in batch) != is_alone
        for row in range(2) if not is_alone else ():
            width, height = sizes[batch["index"][row]]
            assert batch["size"][row].tolist() == [height, width]
            assert (batch["image"][row, :height, :width] == batch["index"][row]).all()
            assert not batch["image"][row, height:].any()
            assert not batch["image"][row, :, width:].any()
        seen += batch["index"][batch["valid"]].tolist()
    assert sorted(seen) == [0, 1, 2, 3, 4]


def test_labels_outside_an_image_are_ignored(tmp_path):
    for i, (width, height) in enumerate([(6, 4), (3, 9)]):
        for folder in ("input", "target"):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(np.ones((height, width) if folder == "target" else (height, width, 3), np.uint8)).save(
                tmp_path / folder / f"{i}.png"
            )
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "val.lst").write_text("".join(f"input/{i}.png target/{i}.png\n" for i in range(2)))
    (batch,) = eval_batches(find_samples(str(tmp_path), "val"), PLAIN, 2)
    for (height, width), label in zip(batch["size"], batch["label"], strict=True):
        assert (label[:height, :width] == 1).all()
        assert np.count_nonzero(label == 255) == 32 * 32 - height * width


def test_evaluation_is_split_between_hosts(street_scenes):
    samples = find_samples(str(street_scenes), "val")
    parts = [list(eval_batches(samples, CITYSCAPES, 2, process_index=i, process_count=2)) for i in (0, 1)]
    assert [len(part) for part in parts] == [2, 2]
    seen = [int(b["index"][j]) for part in parts for b in part for j in range(1) if b["valid"][j]]
    assert sorted(seen) == [0, 1, 2]


def test_a_second_evaluation_reuses_the_dataset_and_gives_the_same_batches(street_scenes):
    samples = find_samples(str(street_scenes), "val")
    first = list(eval_batches(samples, CITYSCAPES, 2))
    built = evaluation._build_evaluation.cache_info().misses
    assert all(are_equal(a, b) for a, b in zip(first, eval_batches(samples, CITYSCAPES, 2), strict=True))
    assert evaluation._build_evaluation.cache_info().misses == built


def test_an_image_whose_size_changes_after_the_plan_is_an_error(tmp_path):
    samples = write_images(tmp_path, [(20, 10), (90, 40)])
    batches = eval_batches(samples, PLAIN, 1)
    Image.new("RGB", (20, 9)).save(tmp_path / "input" / "0.png")
    with pytest.raises(DataError, match=r"input/0\.png has 20x9 pixels, but it had 20x10 before this evaluation"):
        list(batches)
