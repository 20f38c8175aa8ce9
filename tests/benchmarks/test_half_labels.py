import half_labels
import numpy as np
from PIL import Image

from deeplab_jax.data.find import find_samples


def test_every_second_training_label_is_hidden(tmp_path):
    root, out = tmp_path / "camvid", tmp_path / "half"
    for split, stems in (("train", "abcde"), ("val", "xy")):
        for folder in (split, f"{split}annot"):
            (root / folder).mkdir(parents=True)
            for stem in stems:
                Image.fromarray(np.zeros((2, 2), np.uint8)).save(root / folder / f"{stem}.png")
    for _ in range(2):  # a second call changes nothing
        assert half_labels.hide_labels(root, out) == 5
        assert find_samples(str(out), "train").images == ("train/a.png", "train/c.png", "train/e.png")
        assert find_samples(str(out), "val").images == find_samples(str(root), "val").images
        assert sorted(path.name for path in (out / "unlabelled").rglob("*.png")) == ["b.png", "d.png"]
        assert sorted(path.name for path in (out / "trainannot").iterdir()) == ["a.png", "c.png", "e.png"]
