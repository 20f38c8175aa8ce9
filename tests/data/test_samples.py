import dataclasses
import hashlib

from deeplab_jax.data.image_files import ImageFiles
from deeplab_jax.data.samples import Samples, digest


def test_the_digest_depends_only_on_the_names_their_order_and_the_label_kind():
    samples = Samples("root", ("a.png", "b.png"), ("c.png", "d.png"), "labelIds", "list", ImageFiles())
    text = '["labelIds", ["a.png", "b.png"], ["c.png", "d.png"]]'
    assert digest(samples) == hashlib.sha256(text.encode()).hexdigest()
    assert digest(dataclasses.replace(samples, root="elsewhere", source="a scan")) == digest(samples)
    changes = [
        {"images": ("b.png", "a.png")},
        {"labels": ("d.png", "c.png")},
        {"images": ("b.png", "a.png"), "labels": ("d.png", "c.png")},
        {"images": ("a.png", "b.png", "c.png"), "labels": ("d.png",)},
        {"labels": ()},
        {"kind": "color"},
    ]
    assert len({digest(samples), *(digest(dataclasses.replace(samples, **change)) for change in changes)}) == 7
