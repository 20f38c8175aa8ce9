import dataclasses

from deeplab_jax.config import Config
from deeplab_jax.evaluation.protocol import describe_differences


def test_images_that_would_be_read_with_another_range_are_reported():
    stored = Config()
    config = dataclasses.replace(stored, data=dataclasses.replace(stored.data, value_range=(7000.0, 9000.0)))
    assert describe_differences(config, stored) == [
        "`data.value_range` (=[7000.0, 9000.0]) is [] in the checkpoint, so scores can differ from those of training."
    ]
    assert describe_differences(stored, stored) == []
