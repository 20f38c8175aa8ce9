from deeplab_jax.training.writers.mlflow_client import clean_names


def test_each_class_has_a_metric_of_its_own():
    assert clean_names(["iou/道路", "iou/天空", "iou/Straße"]) == {
        "iou/道路": "iou/道路",
        "iou/天空": "iou/天空",
        "iou/Straße": "iou/Straße",
    }
    names = ["iou/a?", "iou/a!", "iou/a_", "iou/a_2"]  # MLflow refuses ? and !
    assert clean_names(names) == dict(zip(names, ["iou/a_", "iou/a__2", "iou/a__3", "iou/a_2"], strict=True))
