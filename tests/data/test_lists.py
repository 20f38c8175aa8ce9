import pytest
from etils import epath
from test_find import write_list

from deeplab_jax.data.find import find_samples
from deeplab_jax.data.lists import read_list
from deeplab_jax.errors import DataError


@pytest.fixture
def read(tmp_path):
    def read(text, **options):
        return list(read_list(write_list(tmp_path, text, **options), epath.Path(tmp_path)))

    return read


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("a.png\tb.png\n", [("a.png", "b.png")]),
        ("a.png b.png\r\nc.png   d.png  ", [("a.png", "b.png"), ("c.png", "d.png")]),
        ("\n  \na.png\tb.png\n\n", [("a.png", "b.png")]),
        ("a b.png\tc d.png\n", [("a b.png", "c d.png")]),
        ("\ufeffa.png\n", [("a.png", "")]),
        ("# image label\na.png b.png", [("a.png", "b.png")]),
        ("i\\a.png l\\b.png", [("i/a.png", "l/b.png")]),
        ("./i//a.png ./l/../b.png", [("i/a.png", "b.png")]),
        ("a.png,b.png\nc.JPG;d.png\ne.png|f.npy", [("a.png", "b.png"), ("c.JPG", "d.png"), ("e.png", "f.npy")]),
        ('a.png, b.png\n"c.png","d.png"', [("a.png", "b.png"), ("c.png", "d.png")]),
        ('"a.png" "b.png"\n"c d.png"\t"e f.png"\n"g h.png"', [("a.png", "b.png"), ("c d.png", "e f.png"), ("g h.png", "")]),
        ("e f.png ; g h.png", [("e f.png", "g h.png")]),
        ("a,b.png\tc,d.png\na,b.png c,d.png", [("a,b.png", "c,d.png")] * 2),
        ("a,b.png", [("a,b.png", "")]),
        ("", []),
    ],
)
def test_lists_in_several_formats_are_read(read, text, pairs):
    assert read(text) == pairs


def test_names_can_start_with_a_slash_the_root_or_its_last_folder(read, tmp_path):
    (tmp_path / "i").mkdir()
    assert read("/i/a.png") == [("i/a.png", "")]
    assert read(f"{tmp_path}/i/a.png") == [("i/a.png", "")]
    assert read(f"{tmp_path.name}/i/a.png") == [("i/a.png", "")]


def test_a_folder_with_the_name_of_a_relative_root_is_not_the_root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sets/day").mkdir(parents=True)
    path = write_list(tmp_path / "sets/day", "sets/day/a.png")
    assert list(read_list(path, epath.Path("sets/day"))) == [("a.png", "")]
    (tmp_path / "sets/day/sets").mkdir()
    assert list(read_list(path, epath.Path("sets/day"))) == [("sets/day/a.png", "")]


def test_a_list_in_utf16_is_read(tmp_path):
    path = write_list(tmp_path, "")
    path.write_bytes("ü.png\r\n".encode("utf-16"))
    assert list(read_list(path, epath.Path(tmp_path))) == [("ü.png", "")]


@pytest.mark.parametrize("line", ["a b c", "../a.png b.png", "/etc/a.png b.png", "C:\\a.png", "a/../../b.png"])
def test_the_error_for_a_malformed_line_names_its_number(read, line):
    with pytest.raises(DataError, match="Line 2 of"):
        read(f"x y\n{line}\n")


def test_labels_before_images_are_an_error(read):
    with pytest.raises(
        DataError, match=r"Line 2 of .* gives 'b\.JPG' as a label, .* Write the image first and the label second"
    ):
        read("a.jpg a.png\nb.png b.JPG")


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16-le"])
def test_a_list_that_is_not_utf8_is_an_error(tmp_path, encoding):
    path = write_list(tmp_path, "")
    path.write_bytes("münchen.png".encode(encoding))
    with pytest.raises(DataError, match=r"train\.lst is not UTF-8 text"):
        list(read_list(path, epath.Path(tmp_path)))


def test_a_list_that_cannot_be_read_is_an_error(tmp_path):
    (tmp_path / "list" / "train.lst").mkdir(parents=True)
    with pytest.raises(DataError, match=r"list/train\.lst cannot be read \(Is a directory\)\. Make it a readable text file"):
        find_samples(str(tmp_path), "train")
    (tmp_path / "list" / "val.lst").symlink_to("nowhere")
    with pytest.raises(DataError, match=r"list/val\.lst cannot be read \(No such file or directory\)"):
        find_samples(str(tmp_path), "val")
