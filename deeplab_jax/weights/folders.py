"""Read what Hugging Face's libraries write next to a network's weights: its settings, and an index of several weights files."""

import json
import os
from typing import Any

from deeplab_jax.errors import CheckpointError, one_line

CONFIG, PREPROCESSING = "config.json", "preprocessor_config.json"
_MAX_BYTES = 50_000_000  # an index lists every tensor


def read_settings_file(folder: str, name: str) -> dict[str, Any]:
    """Return the content of a folder's config.json or preprocessor_config.json, or {} if it has no such file.

    Raises:
      CheckpointError: The file is damaged. The message continues a sentence that starts with the folder.
    """
    path = os.path.join(folder, name)
    return _read_json(path) if os.path.exists(path) else {}


def list_shards(index: str) -> dict[str, set[str]]:
    """Return the names of the tensors in each file that an index lists.

    Args:
      index: The path of a file such as model.safetensors.index.json.

    Raises:
      CheckpointError: The index is damaged. The message continues a sentence that starts with the folder.
    """
    files = _read_json(index).get("weight_map")
    names = list(files.values()) if isinstance(files, dict) else []
    # The files are in the folder itself. A path could lead anywhere.
    are_names = all(isinstance(name, str) and name == os.path.basename(name) for name in names)
    if not isinstance(files, dict) or not are_names or not all(map(str.isprintable, (*files, *names))):
        raise CheckpointError(f"has a damaged {os.path.basename(index)}, which lists no weights files. Download it again.")
    shards: dict[str, set[str]] = {name: set() for name in names}
    for tensor, name in files.items():
        shards[name].add(tensor)
    return shards


def _read_json(path: str) -> dict[str, Any]:
    name = os.path.basename(path)
    try:
        if os.path.getsize(path) > _MAX_BYTES:
            raise ValueError(f"it has more than {_MAX_BYTES} bytes")
        with open(path, encoding="utf-8-sig") as file:
            content = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"has a {name} that cannot be read ({one_line(error)}). Download or save it again.") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"has a {name} that is not a JSON object. Download or save it again.")
    return content
