"""The `deeplab-jax verify` command."""

import sys
from typing import Annotated

import tyro


def verify(
    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    from_: Annotated[int, tyro.conf.arg(name="from")],
    steps: int,
    root: str | None = None,
) -> None:
    """Replay training steps and check samples, losses and state against the run's receipt. The exit code is 1 if any differ.

    Args:
      run: The run folder.
      from_: The step to start from. Give the step of an existing checkpoint, or 0 for the start of the run.
      steps: The number of steps to replay.
      root: The new location of the data set or its prepared records, if they have moved since the run. For tfds:NAME, give the
        TFDS data directory.
    """
    from deeplab_jax.checkpoints.paths import require_run
    from deeplab_jax.commands.datasets import locate_data, open_training_data, open_training_set
    from deeplab_jax.runtime.compilation import enable_compilation_cache
    from deeplab_jax.runtime.mesh import split_cpu_for
    from deeplab_jax.training import verify as verification
    from deeplab_jax.weights.transfer import pretrained_variables

    require_run(run)
    config, _ = verification.config_at(run, from_)
    split_cpu_for(config.mesh)
    config = locate_data(config, root)
    enable_compilation_cache()
    data, _ = open_training_data(config, print)
    samples = open_training_set(config)
    pretrained = (lambda: pretrained_variables(config, print)) if config.model.pretrained else None
    contradictions = 0
    labels = {True: "ok", False: "ERROR", None: "note"}

    def fingerprint(i: int) -> str:
        return samples.store.fingerprint(samples, i).hex()

    for finding in verification.verify(run, from_, steps, data, fingerprint, pretrained):
        print(f"{labels[finding.agrees]:5} {finding.text}", flush=True)
        contradictions += finding.agrees is False
    print(f"Errors found: {contradictions}." if contradictions else "Nothing contradicts the receipt.")
    sys.exit(1 if contradictions else 0)
