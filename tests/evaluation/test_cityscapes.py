"""Compare our Cityscapes scores with those from the official script, evalPixelLevelSemanticLabeling.py."""

import dataclasses
import zipfile

import numpy as np
import pytest
from conftest import read_pixels
from PIL import Image

from deeplab_jax.data.find import find_samples
from deeplab_jax.data.instances import explain_missing_instances, instance_file, read_instances
from deeplab_jax.errors import ConfigError, DataError
from deeplab_jax.evaluation import cityscapes, submission
from deeplab_jax.evaluation.metrics import empty_totals
from deeplab_jax.evaluation.scores import summary, tables
from deeplab_jax.labels import CITYSCAPES, IGNORE, MAPILLARY_CITYSCAPES, LabelSet

CLASS = {name: i for i, name in enumerate(CITYSCAPES.names)}
LABEL_ID = dict(zip(CITYSCAPES.names, CITYSCAPES.class_ids, strict=True))


def to_train_ids(label_ids):
    return CITYSCAPES.id_table()[label_ids].astype(np.uint8)


def count_confusion(label_ids, predictions):
    confusion = np.zeros((19, 19), np.int64)
    for label, prediction in zip(label_ids, predictions, strict=True):
        truth = to_train_ids(label)
        np.add.at(confusion, (truth[truth != IGNORE], prediction[truth != IGNORE]), 1)
    return confusion


def write_labels(folder, label_ids, instances):
    paths = []
    for i, (label, ids) in enumerate(zip(label_ids, instances, strict=True)):
        paths.append(folder / f"gridtown_{i:06d}_000019_gtFine_labelIds.png")
        Image.fromarray(label.astype(np.uint8)).save(paths[-1])
        Image.fromarray(ids.astype(np.uint16)).save(folder / instance_file(paths[-1].name))
    return paths


def compute_scores(label_ids, instances, predictions):
    counts = [
        cityscapes.instance_counts(prediction, ids.astype(np.uint16))
        for prediction, ids in zip(predictions, instances, strict=True)
    ]
    return cityscapes.scores(count_confusion(label_ids, predictions), sum(counts))


def write_predictions(folder, names, predictions):
    for i, prediction in enumerate(predictions):
        submission.write_prediction(str(folder), names[i], prediction)


def assert_same(scores, reference):
    """Check that our scores equal the official script's, including nan. Scores that we omit must be nan in its output."""
    for kind, average in cityscapes.AVERAGES.items():
        np.testing.assert_allclose(scores[average], reference[average], rtol=0, atol=1e-9)
        for name, value in reference[kind].items():
            np.testing.assert_allclose(scores[kind].get(name, np.nan), value, rtol=0, atol=1e-9, err_msg=f"{kind} {name}")
        assert set(scores[kind]) <= set(reference[kind])


def draw_blocks(rng, values, size, cell):
    """Return a map of square cells, each filled with a random value from `values`."""
    height, width = size
    coarse = rng.choice(values, (-(-height // cell), -(-width // cell)))
    return np.kron(coarse, np.ones((cell, cell), coarse.dtype))[:height, :width]


def perturb(truth, rng, classes):
    """Return mostly correct train ids, like a trained network's predictions. Ignored pixels get random classes."""
    wrong = draw_blocks(rng, [False, False, True], truth.shape, 5) | (truth == IGNORE)
    return np.where(wrong, draw_blocks(rng, classes, truth.shape, 3), truth).astype(np.uint8)


@pytest.mark.parametrize("kind", ["random", "perturbed", "perfect", "one class"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_scores_equal_those_of_the_script_on_submitted_files(split, kind, street_scenes, official_evaluation, tmp_path):
    samples = find_samples(str(street_scenes), split)
    rng = np.random.default_rng(0)
    label_ids = [read_pixels(street_scenes / name) for name in samples.labels]
    predict = {
        "random": lambda truth: rng.integers(0, 19, truth.shape, np.uint8),
        "perturbed": lambda truth: perturb(truth, rng, range(19)),
        "perfect": lambda truth: np.where(truth == IGNORE, 0, truth),
        "one class": lambda truth: np.full_like(truth, CLASS["car"]),
    }[kind]
    predictions = [predict(to_train_ids(label)) for label in label_ids]
    names = submission.file_names(samples.images, CITYSCAPES)
    write_predictions(tmp_path, names, predictions)
    submission.write_archive(str(tmp_path), names)

    assert explain_missing_instances(samples) == ""
    total = sum(
        cityscapes.instance_counts(prediction, read_instances(samples, cityscapes.INSTANCE_LABELS, i, prediction.shape))
        for i, prediction in enumerate(predictions)
    )
    assert total[0].sum() > 0
    scores = cityscapes.scores(count_confusion(label_ids, predictions), total)
    assert_same(scores, official_evaluation(tmp_path, [street_scenes / name for name in samples.labels]))


CLASSES = {
    "all": range(34),
    "no instances": [7, 8, 11, 21, 23],
    "only ignored labels": [0, 4, 29, 30],
    "only vehicles": [26, 28, 29, 30],
    "one category": [7, 8],
}


@pytest.mark.parametrize("predicted", [range(19), [0, 1, 13], [11, 12]], ids=["any", "car or flat", "human"])
@pytest.mark.parametrize("present", CLASSES)
def test_scores_equal_those_of_the_script_if_classes_are_absent(present, predicted, official_evaluation, tmp_path):
    rng = np.random.default_rng(len(present))
    label_ids = [draw_blocks(rng, list(CLASSES[present]), (30, 41), 6) for _ in range(3)]
    countable = np.isin(label_ids, range(24, 34))
    # Groups of objects keep the plain label id. Instance number 0 is stored as exactly 1000 * label id. The last image has
    # no instances.
    instances = [
        np.where(is_countable, 1000 * label + draw_blocks(rng, [0, 1, 2, 517], (30, 41), 4), label)
        for label, is_countable in zip(label_ids, countable, strict=True)
    ]
    instances[0] = np.where(draw_blocks(rng, [0, 1], (30, 41), 10), label_ids[0], instances[0])
    instances[2] = label_ids[2]
    predictions = [perturb(to_train_ids(label), rng, list(predicted)) for label in label_ids]
    labels = write_labels(tmp_path, label_ids, instances)
    names = [path.name.replace("gtFine", "pred") for path in labels]
    write_predictions(tmp_path / "results", names, predictions)
    assert_same(compute_scores(label_ids, instances, predictions), official_evaluation(tmp_path / "results", labels))


def test_scores_equal_values_computed_by_hand():
    # The image shows two people (1 and 3 pixels) and a car (2 pixels). The first person is predicted correctly. The second
    # person's pixels are predicted as person, rider and road.
    label_ids = np.array([[24, 24, 24, 24, 26, 26, 7, 4]])
    instances = np.array([[24000, 24001, 24001, 24001, 26000, 26000, 7, 4]])
    prediction = np.array(
        [[CLASS[n] for n in ("person", "person", "rider", "road", "car", "truck", "person", "sky")]], np.uint8
    )
    counts = cityscapes.instance_counts(prediction, instances.astype(np.uint16))
    np.testing.assert_allclose(counts[:, CLASS["person"]], [2, 1 + 1 / 3, 1 + 2 / 3])
    np.testing.assert_allclose(counts[:, CLASS["car"]], [1, 1 / 2, 1])
    assert counts.sum() == pytest.approx(5 + 2.5)
    scores = cityscapes.scores(count_confusion([label_ids], [prediction]), counts)
    person = cityscapes.AVERAGE_SIZE["person"]
    assert scores["classScores"]["person"] == pytest.approx(2 / 5)  # 2 correct, 2 missed, 1 false positive on the road
    assert scores["classInstScores"]["person"] == pytest.approx(4 / 3 * person / (2 * person + 1))
    assert scores["classInstScores"]["rider"] == 0.0  # no instances, but one pixel is predicted as rider
    assert np.isnan(scores["classInstScores"]["bus"])
    assert np.isnan(scores["classInstScores"]["road"])
    assert scores["categoryScores"] == pytest.approx(
        {
            "flat": 0.0,
            "construction": np.nan,
            "object": np.nan,
            "nature": np.nan,
            "sky": np.nan,
            "human": 3 / 5,
            "vehicle": 1.0,
        },
        nan_ok=True,
    )
    assert scores["categoryInstScores"]["human"] == pytest.approx(5 / 3 * person / (2 * person + 1))
    assert scores["categoryInstScores"]["vehicle"] == 1.0
    assert scores["averageScoreCategories"] == pytest.approx((0 + 3 / 5 + 1) / 3)


def test_each_class_is_in_one_category():
    assert sorted(name for members in cityscapes.CATEGORIES.values() for name in members) == sorted(CITYSCAPES.names)


def test_reports_contain_the_official_scores_with_null_for_nan():
    confusion, instances = np.zeros((19, 19), np.int64), np.zeros((3, 19))
    confusion[0, 0] = 1
    scores = cityscapes.scores(confusion, instances)
    totals = empty_totals(19)._replace(confusion=confusion)
    written = summary(totals, CITYSCAPES, scores)["cityscapes"]
    assert written["categoryScores"]["flat"] == 1.0
    assert written["averageScoreInstClasses"] is None
    by_class, overall, by_category = tables(totals, CITYSCAPES, scores)
    assert [by_class.columns[-2].header, by_category.columns[-1].header] == ["iIoU", "iIoU"]
    assert list(overall.columns[0].cells)[-1] == "mean iIoU"
    assert [next(column.cells) for column in by_category.columns] == ["flat", "100.00", "-"]
    without = cityscapes.scores(confusion)
    assert set(without) == {"classScores", "categoryScores", "averageScoreClasses", "averageScoreCategories"}
    assert [len(table.columns) for table in tables(totals, CITYSCAPES, without)] == [7, 2, 2]


def test_the_archive_only_depends_on_the_files_of_this_run(tmp_path):
    names = submission.file_names(["a/x-y_000000_000019_leftImg8bit.png", "z_000001_000019_leftImg8bit.jpg"], CITYSCAPES)
    assert names == ("x-y_000000_000019_pred_labelIds.png", "z_000001_000019_pred_labelIds.png")
    (tmp_path / "old_000000_000000_pred_labelIds.png").write_bytes(b"stale")
    archives = []
    for value in (3, 5, 3):
        write_predictions(tmp_path, names, [np.full((2, 3), value, np.uint8)] * 2)
        archives.append(submission.write_archive(str(tmp_path), names).read_bytes())
    assert archives[0] == archives[2] != archives[1]
    with zipfile.ZipFile(tmp_path / submission.ARCHIVE) as archive:
        assert archive.namelist() == list(names)
        with archive.open(names[1]) as file:
            np.testing.assert_array_equal(read_pixels(file), np.full((2, 3), LABEL_ID["wall"], np.uint8))
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_images_that_cannot_be_submitted_are_reported_by_name():
    image = "leftImg8bit/val/a/a_000000_000019_leftImg8bit.png"
    for name in ("a.png", "a_0_000019_leftImg8bit.png", "a_b_000000_000019_leftImg8bit.png", "a_000000_000019.png"):
        with pytest.raises(DataError, match=rf"^{name} cannot be submitted"):
            submission.file_names([image, name], CITYSCAPES)
    with pytest.raises(DataError, match=rf"^{image} and b/a_000000_000019_leftImg8bit.jpg would both be"):
        submission.file_names([image, "b/a_000000_000019_leftImg8bit.jpg"], CITYSCAPES)
    with pytest.raises(ConfigError, match="`labels` is 'two'"):
        submission.file_names([image], LabelSet("two", ("a", "b"), ((1, 1, 1), (2, 2, 2))))


def test_label_sets_with_merged_ids_are_not_official():
    assert cityscapes.is_official(dataclasses.replace(CITYSCAPES, name="mine"))
    trailers_are_trucks = tuple((30,) if name == "truck" else () for name in CITYSCAPES.names)
    ignored = tuple(i for i in CITYSCAPES.ignored_ids if i != 30)
    assert not cityscapes.is_official(dataclasses.replace(CITYSCAPES, ignored_ids=ignored, more_ids=trailers_are_trucks))
    assert not cityscapes.is_official(MAPILLARY_CITYSCAPES)


def test_a_folder_that_cannot_be_written_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="Cannot write"):
        write_predictions(tmp_path / "file", ["a.png"], [np.zeros((2, 2), np.uint8)])


def test_an_error_while_writing_keeps_the_old_archive(tmp_path):
    write_predictions(tmp_path, ["a.png"], [np.zeros((2, 2), np.uint8)])
    submission.write_archive(str(tmp_path), ["a.png"])
    before = (tmp_path / submission.ARCHIVE).read_bytes()
    with pytest.raises(FileNotFoundError, match=r"missing\.png"):
        submission.write_archive(str(tmp_path), ["a.png", "missing.png"])
    assert (tmp_path / submission.ARCHIVE).read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", submission.ARCHIVE]
