"""Score a checkpoint: `python eval.py --config=configs/quickstart.py --checkpoint=runs/quickstart`.

`--checkpoint` is a run (its latest step), RUN/best, or one step RUN/checkpoints/N. `--config.eval.output_stride=8` evaluates
at another output stride than training's. A list without labels gives files alone: `--config.eval.split=test` with
`--output=DIR` for pictures, or `--submission=DIR` for what the Cityscapes server takes. On several hosts the same command
runs on each, and each takes its share of the images (docs/clusters.md).
"""

import functools
import json

from absl import flags
from ml_collections import config_flags
from rich.console import Console

from deeplab_jax.commands.main import checked_config, checked_folder, define_host_flags, joined_hosts, run_with_flags
from deeplab_jax.config import Config, to_dict
from deeplab_jax.errors import ConfigError

CONFIG = config_flags.DEFINE_config_file("config", None, "Recipe: a Python file with get_config().")
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A run's folder, RUN/best, or RUN/checkpoints/N.")
OUTPUT = flags.DEFINE_string("output", None, "Folder for scores.json and, by image, train ids, colours and overlays.")
SUBMISSION = flags.DEFINE_string("submission", None, "Folder for label-id PNGs and submission.zip for the Cityscapes server.")

define_host_flags()


def main() -> None:
    """Joins data and evaluation; everything else is in deeplab_jax."""
    config = checked_config(CONFIG.value)
    checkpoint = checked_folder("--checkpoint", CHECKPOINT.value, "runs/quickstart")
    output = OUTPUT.value and checked_folder("--output", OUTPUT.value, "runs/quickstart/val")
    submission = SUBMISSION.value and checked_folder("--submission", SUBMISSION.value, "runs/quickstart/submission")
    with joined_hosts() as console:
        score_checkpoint(config, checkpoint, output, submission, console)


def score_checkpoint(config: Config, checkpoint: str, output: str | None, submission: str | None, console: Console) -> None:
    """Every process evaluates its share of the images; the first one reports."""
    # Imported here so that a mistyped flag is answered at once.
    import jax
    from etils import epath

    from deeplab_jax.checkpoints.store import resolve, restore_model
    from deeplab_jax.evaluation import cityscapes
    from deeplab_jax.evaluation import scores as report
    from deeplab_jax.evaluation.evaluate import Visitor, evaluate
    from deeplab_jax.evaluation.pictures import write_pictures
    from deeplab_jax.evaluation.submission import file_names, write_archive, write_prediction
    from deeplab_jax.files import replacing
    from deeplab_jax.runtime import hosts
    from deeplab_jax.runtime.compilation import keep_programs

    if output and submission and epath.Path(output).is_relative_to(submission):
        raise ConfigError(f"`--output` (={output!r}) lies in --submission, where any PNG counts as submitted: move it out")
    keep_programs()
    step = resolve(checkpoint)
    variables = restore_model(str(step), like=config)
    # TensorFlow, for which a wrong checkpoint should not wait.
    from deeplab_jax.commands.datasets import evaluation_set
    from deeplab_jax.data.find import describe
    from deeplab_jax.data.instances import read_instances, why_no_instances
    from deeplab_jax.data.samples import digest

    samples, batches = evaluation_set(config, need_labels=False)
    if not (samples.labels or output or submission):
        raise ConfigError(
            f"`eval.split` (={config.eval.split!r}) has no labels to score: give --output or --submission for the predictions"
        )
    hosts.require_same(config=to_dict(config), checkpoint=str(step), data=digest(samples))
    names = file_names(samples.images, config.labels) if submission else ()
    console.print(f"checkpoint {step}")
    console.print(describe(config.eval.split, samples))
    visitors: list[Visitor] = []
    if output:
        stems = [str(epath.Path(image).with_suffix("")) for image in samples.images]
        visitors.append(
            lambda seen: write_pictures(output, stems[seen.index], config.labels, seen.prediction, image=seen.image)
        )
    if submission:
        visitors.append(lambda seen: write_prediction(submission, names[seen.index], seen.prediction))
    is_official, instances = bool(samples.labels) and cityscapes.is_official(config.labels), None
    if is_official and (why := why_no_instances(samples)):
        console.print(f"iIoU is left out: {why}")
    elif is_official:
        read = functools.partial(read_instances, samples, cityscapes.INSTANCE_LABELS)
        instances, add_instances = cityscapes.instance_counter(read)
        visitors.append(lambda seen: add_instances(seen.index, seen.prediction))
    confusion = evaluate(config, variables, batches(), len(samples), visitors, console)
    if instances is not None:
        instances = hosts.gather(instances).sum(0)  # each process counted the images that it read
    hosts.barrier("images written")
    if jax.process_index():
        return
    if submission:
        console.print(f"submission {write_archive(submission, names)}")
    if samples.labels:
        official = cityscapes.scores(confusion, instances) if is_official else None
        console.print(report.table(confusion, config.labels, official))
        if output:
            with replacing(epath.Path(output) / "scores.json") as file:
                file.write((json.dumps(report.summary(confusion, config.labels, official), indent=2) + "\n").encode())


if __name__ == "__main__":
    run_with_flags(main)
