import os

import pytest
from etils import epath

from deeplab_jax.files import write_atomically


@pytest.mark.parametrize("name", ["a" * 251 + ".png", "图" * 83 + ".png"], ids=["ascii", "three bytes each"])
def test_the_longest_names_can_be_written(tmp_path, name):
    with write_atomically(epath.Path(tmp_path) / name) as file:
        file.write(b"x")
    assert os.listdir(tmp_path) == [name]
    assert (tmp_path / name).read_bytes() == b"x"
