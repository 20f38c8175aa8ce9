"""`deeplab-jax verify`."""

import sys
from typing import Annotated

import tyro


def verify(
    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    from_: Annotated[int, tyro.conf.arg(name="from")],
    steps: int,
    root: str | None = None,
) -> None:
    """Replay steps of a run and compare samples, losses and state with its receipt. The exit code is 1 if any differ.

    Args:
      run: the run's folder.
      from_: step of a checkpoint that is kept, or 0 for the beginning.
      steps: how many to replay.
      root: where the data set or its prepared records lie now, if not where the run read them; for tfds:NAME its data_dir.
    """
    from deeplab_jax.commands.datasets import locate_data, training_data, training_set
    from deeplab_jax.runtime.compilation import keep_programs
    from deeplab_jax.train import verify as verification
    from deeplab_jax.weights.transfer import pretrained_variables

    config, _ = verification.config_at(run, from_)
    config = locate_data(config, root)
    keep_programs()
    data, _ = training_data(config, print)
    samples = training_set(config)
    pretrained = (lambda: pretrained_variables(config, print)) if config.model.pretrained else None
    objections = 0
    words = {True: "agrees", False: "OBJECTS", None: "note"}

    def fingerprint(i: int) -> str:
        return samples.store.fingerprint(samples, i).hex()

    for finding in verification.verify(run, from_, steps, data, fingerprint, pretrained):
        print(f"{words[finding.agrees]:8} {finding.text}", flush=True)
        objections += finding.agrees is False
    print(f"{objections} objections" if objections else "nothing to object to")
    sys.exit(1 if objections else 0)
