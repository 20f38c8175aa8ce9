import pytest
from test_find import save_images
from test_layouts import find_names

from deeplab_jax.data.find import find_samples
from deeplab_jax.errors import DataError


def test_custom_folders_without_split_names_form_the_training_split(tmp_path):
    save_images(tmp_path, "input/seq1/a.png", "input/seq2/b.png", "target/seq1/a.png", "target/seq2/b.png")
    assert find_names(tmp_path, "train")[0] == ("input/seq1/a.png", "input/seq2/b.png")
    assert find_names(tmp_path, "seq2")[0] == ("input/seq2/b.png",)
    save_images(tmp_path, "input/val/c.png", "target/val/c.png")
    with pytest.raises(DataError, match=r"no samples of split 'train'.*which has the splits seq1, seq2, val"):
        find_samples(str(tmp_path), "train")


@pytest.mark.parametrize("names", [("training", "validation"), ("train", "valid"), ("Train", "Val"), ("training", "dev")])
def test_custom_folders_can_have_other_names_for_the_usual_splits(tmp_path, names):
    for name in names:
        save_images(tmp_path, f"input/{name}/{name}.png", f"target/{name}/{name}.png")
    for split, name in zip(("train", "val"), names, strict=True):
        samples = find_samples(str(tmp_path), split)
        assert (samples.images, samples.labels) == ((f"input/{name}/{name}.png",), (f"target/{name}/{name}.png",))
        assert samples.notes == ((f"The split {split} is the folder input/{name}.",) if split != name else ())
        assert find_samples(str(tmp_path), name).images == samples.images


def test_custom_folders_named_like_a_split_do_not_form_the_training_split(tmp_path):
    for name in ("train_set", "val_set"):
        save_images(tmp_path, f"input/{name}/a.png", f"target/{name}/a.png")
    with pytest.raises(DataError, match=r"which has the splits train_set, val_set\. Choose one .* --config\.data\.train_split"):
        find_samples(str(tmp_path), "train")
    for name in ("valley", "testimony", "devon"):  # places
        save_images(tmp_path / "places", f"input/{name}/{name}.png", f"target/{name}/{name}.png")
    assert len(find_samples(str(tmp_path / "places"), "train")) == 3


def test_images_next_to_the_folders_of_the_splits_are_noted(tmp_path):
    names = ("train/a.png", "b.png", "c.png")
    save_images(tmp_path, *(f"{folder}/{name}" for folder in ("input", "target") for name in names))
    (tmp_path / "input/notes.txt").touch()
    samples = find_samples(str(tmp_path), "train")
    assert samples.images == ("input/train/a.png",)
    (note,) = samples.notes
    assert note.startswith("Images next to the folder input/train are in no split (2, such as input/b.png).")


def test_a_name_with_a_line_break_is_an_error(tmp_path):
    save_images(tmp_path, "input/train/a\nb.png", "target/train/a\nb.png")
    with pytest.raises(DataError, match=r"^The image name 'input/train/a\\nb\.png' contains a line break"):
        find_samples(str(tmp_path), "train")
