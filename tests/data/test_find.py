import pytest
from PIL import Image

from deeplab_jax.config import DataConfig
from deeplab_jax.data.find import find_samples, find_split
from deeplab_jax.data.image_files import ImageFiles
from deeplab_jax.errors import DataError


def save_images(root, *names, size=(4, 2)):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", size).save(path)


def write_list(root, text, split="train"):
    (root / "list").mkdir(exist_ok=True)
    (root / "list" / f"{split}.lst").write_bytes(text.encode())
    return root / "list" / f"{split}.lst"


def test_a_folder_of_image_files_is_read_from_the_files(street_scenes):
    samples = find_split(DataConfig(root=str(street_scenes)), "train")
    assert len(samples) == 6
    assert isinstance(samples.store, ImageFiles)


def test_incomplete_records_are_reported_differently_from_an_empty_folder(tmp_path):
    with pytest.raises(DataError, match="which holds nothing"):
        find_split(DataConfig(root=str(tmp_path)), "train")
    (tmp_path / "train-00000-1a2b3c4d.bin").write_bytes(b"")
    with pytest.raises(DataError, match=r"holds incomplete records\. Run `deeplab-jax data prepare` again to complete them"):
        find_split(DataConfig(root=str(tmp_path)), "train")


@pytest.mark.parametrize("names", [("img-00001.json", "img-00001.bin"), ("records.json", "manifest.json")])
def test_files_named_like_record_files_do_not_turn_a_data_set_into_records(tmp_path, names):
    (tmp_path / "list").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    Image.new("L", (4, 4)).save(tmp_path / "la.png")
    (tmp_path / "list" / "train.lst").write_text("a.png\tla.png\n")
    for name in names:
        (tmp_path / name).write_text("{}")
    assert find_split(DataConfig(root=str(tmp_path)), "train").images == ("a.png",)
    with pytest.raises(DataError, match="no samples of split 'val'"):
        find_split(DataConfig(root=str(tmp_path)), "val")


@pytest.mark.parametrize("root", ["", "nowhere"])
def test_the_error_for_a_missing_root_names_the_root(root):
    with pytest.raises(DataError, match=rf"`data\.root` \(='{root}'\)"):
        find_split(DataConfig(root=root), "train")


def test_lists_of_a_cityscapes_folder_are_read(street_scenes):
    train = find_samples(str(street_scenes), "train")
    assert len(train) == 6
    assert train.kind == "labelIds"
    assert train.source.endswith("train.lst")
    test = find_samples(str(street_scenes), "test", need_labels=False)
    assert len(test) == 2
    assert test.labels == ()


@pytest.mark.parametrize("kind", ["labelIds", "labelTrainIds", "color"])
def test_the_label_kind_is_taken_from_the_file_names(tmp_path, kind):
    save_images(tmp_path, "a.png", f"x_gtFine_{kind}.png")
    write_list(tmp_path, f"a.png x_gtFine_{kind}.png")
    assert find_samples(str(tmp_path), "train").kind == kind
    assert find_samples(str(tmp_path), "train", "color").kind == "color"


def test_mixed_label_kinds_are_rejected(tmp_path):
    save_images(tmp_path, "a.png", "x_color.png", "x_labelIds.png")
    write_list(tmp_path, "a.png x_color.png\na.png x_labelIds.png")
    with pytest.raises(DataError, match="color, labelIds"):
        find_samples(str(tmp_path), "train")


def test_cityscapes_folders_are_scanned_without_a_list(street_scenes, tmp_path):
    for folder in ("leftImg8bit", "gtFine"):
        (tmp_path / folder).symlink_to(street_scenes / folder)
    scanned = find_samples(str(tmp_path), "val")
    listed = find_samples(str(street_scenes), "val")
    assert (scanned.images, scanned.labels) == (listed.images, listed.labels)
    assert "folders" in scanned.source
    assert find_samples(str(tmp_path), "val", "color").labels[0].endswith("_gtFine_color.png")
    assert len(find_samples(str(tmp_path), "test", need_labels=False)) == 2


def test_custom_folders_are_scanned_without_a_list(tmp_path):
    save_images(
        tmp_path, "input/train/a.jpg", "input/train/b.png", "target/train/a.png", "target/train/b.png", "input/test/c.png"
    )
    samples = find_samples(str(tmp_path), "train")
    assert samples.images == ("input/train/a.jpg", "input/train/b.png")
    assert samples.labels == ("target/train/a.png", "target/train/b.png")
    assert find_samples(str(tmp_path), "test", need_labels=False).labels == ()


def test_a_missing_label_for_a_custom_image_is_an_error(tmp_path):
    save_images(tmp_path, "input/train/a.jpg", "input/train/b.png", "target/train/a.png")
    with pytest.raises(DataError, match=r"1 of 4 files.*target/train/b\.png"):
        find_samples(str(tmp_path), "train")


def test_the_error_for_missing_files_counts_them_and_names_five(tmp_path):
    save_images(tmp_path, "i/0.png")
    write_list(tmp_path, "".join(f"i/{k}.png\tl/{k}.png\n" for k in range(7)))
    with pytest.raises(DataError) as caught:
        find_samples(str(tmp_path), "train")
    message = str(caught.value)
    assert "13 of 14 files" in message
    assert f"are missing below {tmp_path}: i/1.png, i/2.png, i/3.png, i/4.png, i/5.png and 8 more. " in message


@pytest.mark.parametrize(
    ("root", "message"), [("", r"`data.root` \(=''\)"), ("nowhere", r"`data.root` \(='.*nowhere'\) is not a folder")]
)
def test_a_root_that_is_not_a_folder_is_an_error(tmp_path, root, message):
    with pytest.raises(DataError, match=message):
        find_samples(str(tmp_path / root) if root else "", "train")


def test_an_empty_list_and_an_unknown_split_are_errors(tmp_path):
    write_list(tmp_path, "\n\n")
    with pytest.raises(DataError, match=r"no samples of split 'train' in .*train\.lst"):
        find_samples(str(tmp_path), "train")
    with pytest.raises(DataError, match="no samples of split 'nope'"):
        find_samples(str(tmp_path), "nope")


def test_folders_of_files_that_cannot_be_read_are_not_called_empty(tmp_path):
    for name in ("a.heic", "b.gif"):
        (tmp_path / "input/train").mkdir(parents=True, exist_ok=True)
        (tmp_path / "input/train" / name).touch()
    with pytest.raises(DataError, match=r"no samples of split 'train'.*2 files were left out.* input/train/a\.heic\. Convert"):
        find_samples(str(tmp_path), "train")


def test_folders_of_no_layout_get_short_advice(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    with pytest.raises(DataError, match=r"which holds images/, masks/\. Put the images into input/train/ and the masks"):
        find_samples(str(tmp_path), "train")


def test_images_of_a_list_that_share_a_label_are_noted(tmp_path):
    save_images(tmp_path, "a.png", "b.png", "c.png", "l.png", "m.png")
    write_list(tmp_path, "a.png l.png\nb.png l.png\nb.png l.png\nc.png m.png\n")
    _, note = find_samples(str(tmp_path), "train").notes
    assert note == "Images share a label: a.png and b.png have l.png. This is right only if they show the same scene."
    write_list(tmp_path, "a.png l.png\na.png l.png\n")
    repeated = "Images are listed more than once, such as a.png (2 times). Each line is a sample."
    assert find_samples(str(tmp_path), "train").notes == (repeated,)


def test_a_list_with_labels_for_only_some_images_is_rejected(tmp_path):
    save_images(tmp_path, "a.png", "b.png")
    write_list(tmp_path, "a.png b.png\nb.png\n")
    with pytest.raises(DataError, match="1 of 2 images"):
        find_samples(str(tmp_path), "train")


def test_a_split_without_labels_is_an_error_by_default(tmp_path):
    save_images(tmp_path, "a.png")
    write_list(tmp_path, "a.png\n")
    with pytest.raises(DataError, match=r"needs labels, but .*train\.lst names only images\. Write `image label` on each line"):
        find_samples(str(tmp_path), "train")


def test_a_jpeg_file_in_place_of_a_mask_is_explained(tmp_path):
    for name in ("a.jpg", "a_label.jpg"):
        (tmp_path / name).touch()
    write_list(tmp_path, "a.png a_label.png\n")
    with pytest.raises(DataError, match=r"a\.jpg exists\. Use its name in the list, or convert the file\.$"):
        find_samples(str(tmp_path), "train")
    write_list(tmp_path, "a.jpg a_label.png\n")
    with pytest.raises(DataError, match=r"a_label\.jpg exists, but cannot be used\. Lossy compression changes label values"):
        find_samples(str(tmp_path), "train")


def test_only_files_that_could_be_meant_are_suggested_for_a_missing_one(tmp_path):
    for name in ("a.jpg", "mask_aa.json", "mask_b.png"):
        (tmp_path / name).touch()
    write_list(tmp_path, "a.jpg mask_a.png\n")
    with pytest.raises(DataError, match=r"The most similar name there is mask_b\.png\."):
        find_samples(str(tmp_path), "train")


def test_a_missing_mask_of_a_folder_layout_is_not_blamed_on_a_list(tmp_path):
    save_images(tmp_path, "input/train/a.png", "input/train/b.png", "target/train/a.png")
    with pytest.raises(
        DataError, match=r"All files there belong to other samples\. Add the masks, or leave out their images\.$"
    ):
        find_samples(str(tmp_path), "train")


def test_masks_of_another_kind_are_named_with_the_setting_that_selects_them(tmp_path):
    save_images(tmp_path, "leftImg8bit/train/a/x_leftImg8bit.png", "gtFine/train/a/x_gtFine_labelTrainIds.png")
    advice = r"_labelTrainIds\.png exists\. Set data\.label_kind=labelTrainIds \(--label-kind labelTrainIds\) to use such masks"
    with pytest.raises(DataError, match=advice):
        find_samples(str(tmp_path), "train")
    assert find_samples(str(tmp_path), "train", "labelTrainIds").kind == "labelTrainIds"


def test_images_that_are_listed_twice_are_noted(tmp_path):
    save_images(tmp_path, "a.png", "b.png", "la.png", "lb.png")
    write_list(tmp_path, "a.png la.png\nb.png lb.png\na.png la.png\n")
    samples = find_samples(str(tmp_path), "train")
    assert samples.images == ("a.png", "b.png", "a.png")
    assert samples.notes == ("Images are listed more than once, such as a.png (2 times). Each line is a sample.",)
