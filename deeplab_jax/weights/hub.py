"""Weights files by name: a path as it is, `hf:OWNER/NAME[@REVISION]` through the Hugging Face hub's cache. No tensors."""

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

PREFIX = "hf:"
FILES = ("model.safetensors", "pytorch_model.bin")


def local_file(source: str) -> str:
    """The path of `source`: itself, or for hf:OWNER/NAME[@REVISION] the cached file, fetched with a progress bar if need be.

    Raises:
      CheckpointError: the repository, revision or file does not exist, or the hub cannot be reached and nothing is cached.
    """
    if not source.startswith(PREFIX):
        return source
    repository, _, revision = source.removeprefix(PREFIX).partition("@")
    if repository.count("/") != 1:
        raise CheckpointError(f"`{source}` is no repository: write hf:OWNER/NAME, such as hf:timm/resnet50.tv_in1k")
    unreachable = False
    logging.set_verbosity_error()  # its warnings repeat what is raised
    for name in FILES:
        try:
            return hf_hub_download(repository, name, revision=revision or None, local_files_only=unreachable)
        except LocalEntryNotFoundError:
            unreachable = True
        except (GatedRepoError, RepositoryNotFoundError):
            raise CheckpointError(
                f"`{source}` does not exist or is not open to you: check OWNER/NAME, or log in with `hf auth login`"
            ) from None
        except RevisionNotFoundError:
            raise CheckpointError(f"`{source}` has no revision {revision!r}: give a branch, tag or commit") from None
        except EntryNotFoundError:
            continue
        except HFValidationError:
            raise CheckpointError(
                f"`{source}` is no repository: write hf:OWNER/NAME, such as hf:timm/resnet50.tv_in1k"
            ) from None
        # The HTTP library below the hub's, which changes with its version, has errors of its own.
        except Exception as error:
            raise CheckpointError(f"`{source}` cannot be fetched ({one_line(error)}): try again, or give a file") from None
    if unreachable:
        raise CheckpointError(
            f"`{source}` is not in the cache and the hub cannot be reached: connect once, or download {FILES[0]} of "
            f"{repository} elsewhere and give its path"
        )
    raise CheckpointError(f"`{source}` holds neither {' nor '.join(FILES)}: download its weights and give their path")
