import dataclasses
import hashlib

from deeplab_jax.data.image_files import ImageFiles
from deeplab_jax.data.samples import Samples, digest, digest_contents


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


def test_the_digest_of_the_contents_changes_with_any_file_but_not_with_the_folder(tmp_path):
    def make(folder, image=b"image", label=b"label"):
        (tmp_path / folder).mkdir()
        for name, content in (("a", image), ("b", b"same"), ("c", label), ("d", b"same")):
            (tmp_path / folder / name).write_bytes(content)
        return digest_contents(Samples(str(tmp_path / folder), ("a", "b"), ("c", "d"), "labelIds", "list", ImageFiles()))

    original = make("original")
    assert make("copy") == original
    assert len({original, make("other_image", image=b"Image"), make("other_label", label=b"Label")}) == 3
    (tmp_path / "copy" / "a").rename(tmp_path / "copy" / "e")
    renamed = Samples(str(tmp_path / "copy"), ("e", "b"), ("c", "d"), "labelIds", "list", ImageFiles())
    assert digest_contents(renamed) != original
