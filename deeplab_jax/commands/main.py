"""The console script, and how every entry point parses flags and reports errors."""

import collections
import contextlib
import dataclasses
import difflib
import functools
import io
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Literal, TypeVar

import tyro
from absl import app, flags, logging
from etils import epath
from ml_collections import config_flags
from rich.console import Console

from deeplab_jax import config as config_module
from deeplab_jax.commands import data as data_commands
from deeplab_jax.commands import use as use_commands
from deeplab_jax.config import Config
from deeplab_jax.models import validate
from deeplab_jax.errors import ConfigError, DeeplabError

T = TypeVar("T")
_NO_CONFIG = "`--config` is missing: give a recipe, such as --config=configs/quickstart.py"


def import_weights(
    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")],
    out: Annotated[str, tyro.conf.arg(metavar="DIR")],
    from_: Annotated[Literal["auto", "torchvision", "timm", "mmseg"], tyro.conf.arg(name="from")] = "auto",
    labels: str | None = None,
    output_stride: int | None = None,
    multi_grid: tuple[float, ...] | None = None,
    atrous_rates: tuple[int, ...] | None = None,
    align_corners: bool = False,
    ignore_head: bool = False,
    ema: bool = False,
) -> None:
    """Make a checkpoint of a DeepLabV3, or of a ResNet or MobileNetV3 backbone, of torchvision, timm or mmsegmentation.

    What the tensors do not tell is taken from the file's own configuration or its published name, else assumed, and printed.

    Args:
      source: .safetensors, .pth, .pt or .bin file, or hf:OWNER/NAME[@REVISION].
      out: folder to make.
      from_: whose names the tensors have.
      labels: cityscapes, camvid, voc, ade20k, a label-set file (.json), or a recipe, whose label set is meant.
      output_stride: 8, 16 or 32.
      multi_grid: rates of the last stage's blocks in units of its own rate; mmsegmentation's D16-MG124 is 0.5 1 2.
      atrous_rates: rates of the ASPP at output stride 16.
      align_corners: logits are resized with aligned corners, as in mmsegmentation's 769x769 networks.
      ignore_head: leave the classifiers aside, to train from the rest with other classes.
      ema: take the moving average of the weights that the file keeps beside them.
    """
    from deeplab_jax.weights import transfer

    asked = {
        "output_stride": output_stride,
        "multi_grid": multi_grid,
        "atrous_rates": atrous_rates,
        "align_corners": align_corners or None,
    }
    transfer.import_weights(
        source,
        checked_folder("--out", out, "weights/mmseg_r50"),
        fmt=from_,
        labels=data_commands.choose_labels(labels) if labels else None,
        model={field: value for field, value in asked.items() if value is not None},
        ignore_head=ignore_head,
        ema=ema,
    )


def export_weights(
    checkpoint: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")],
    to: Literal["torchvision", "mmseg"],
    out: Annotated[str, tyro.conf.arg(metavar="FILE")],
) -> None:
    """Write a checkpoint as a state dict that torchvision or mmsegmentation loads with strict=True.

    Args:
      checkpoint: a run's folder, RUN/best, RUN/checkpoints/N, or what `weights import` made.
      to: whose names the tensors get.
      out: .safetensors, .pth or .pt file to write.
    """
    from deeplab_jax.weights import transfer

    transfer.export_weights(checkpoint, out, fmt=to)


def verify(
    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    from_: Annotated[int, tyro.conf.arg(name="from")],
    steps: int,
    root: str | None = None,
) -> None:
    """Replay steps of a run and say whether samples, losses and state are those of its receipt; exit code 1 if not.

    Args:
      run: the run's folder.
      from_: step of a checkpoint that is kept, or 0 for the beginning.
      steps: how many to replay.
      root: where the data set or its prepared records lie now, if not where the run found it; for tfds:NAME its data_dir.
    """
    from deeplab_jax.commands.datasets import moved, training_data, training_set
    from deeplab_jax.data.samples import fingerprint
    from deeplab_jax.runtime.compilation import keep_programs
    from deeplab_jax.train import verify as verification
    from deeplab_jax.weights.transfer import pretrained_variables

    config, _ = verification.config_at(run, from_)
    config = moved(config, root)
    keep_programs()
    data, _ = training_data(config, print)
    samples = training_set(config)
    pretrained = (lambda: pretrained_variables(config, print)) if config.model.pretrained else None
    objections = 0
    words = {True: "agrees", False: "OBJECTS", None: "note"}
    for finding in verification.verify(run, from_, steps, data, lambda i: fingerprint(samples, i).hex(), pretrained):
        print(f"{words[finding.agrees]:8} {finding.text}", flush=True)
        objections += finding.agrees is False
    print(f"{objections} objections" if objections else "nothing to object to")
    sys.exit(1 if objections else 0)


def plan(
    config: Annotated[str, tyro.conf.arg(metavar="FILE.py")],
    fields: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FIELD=VALUE")] = (),
    devices: int | None = None,
    spatial: int | None = None,
    batch_size: int | None = None,
    images: int | None = None,
    accelerator: str = "",
    mfu: float = 1.0,
    compile: bool = True,
) -> None:
    """Say whether a training fits into its devices' memory, and how long it takes at least. Needs no data set.

    Args:
      config: recipe, or FILE.py:ARGUMENT.
      fields: of the config, to set: train.micro_batches=2 model.remat='(1,2)'.
      devices: how many, of this machine or in their place CPU devices, for which the step then is compiled.
      spatial: mesh.spatial.
      batch_size: data.batch_size.
      images: how many the training split has, for a recipe that counts epochs.
      accelerator: device to plan for by its data sheet: a100, a100-40gb, h100, h200, l4, a10g, v4, v5e, v5p or v6e; else this
        machine's first one is measured.
      mfu: share of the peak rate to reckon with; 1 gives a bound.
      compile: ask XLA for the memory of the compiled step; without, only the network's definition tells.
    """
    from deeplab_jax.plan.plan import plan as report
    from deeplab_jax.runtime.compilation import keep_programs

    keep_programs()  # the training that follows may find its own
    options = {"mesh.spatial": spatial, "data.batch_size": batch_size}
    given = [f"{field}={value}" for field, value in options.items() if value is not None]
    report(
        recipe(config, (*fields, *given)),
        Console(soft_wrap=True, highlight=False),
        devices=devices,
        accelerator=accelerator,
        images=images,
        mfu=mfu,
        compiles=compile,
    )


COMMANDS: dict[str, Callable[..., None]] = {
    "data synthetic": data_commands.synthetic,
    "data labels": data_commands.labels,
    "data check": data_commands.check,
    "data prepare": data_commands.prepare,
    "weights import": import_weights,
    "weights export": export_weights,
    "verify": verify,
    "plan": plan,
    "predict": use_commands.predict,
    "report": use_commands.report,
    "export": use_commands.export,
    "demo": use_commands.demo,
}


def main() -> None:
    """`deeplab-jax COMMAND ...`."""
    words = sys.argv[1:]
    for name, command in COMMANDS.items():
        length = len(name.split())
        if words[:length] == name.split():
            _or_exit(functools.partial(_run, name, command, words[length:]))
            return
    asked = words in ([], ["-h"], ["--help"])
    if not asked:
        print(f"error: `{' '.join(words)}` is no command of deeplab-jax\n", file=sys.stderr)
    print("usage: deeplab-jax COMMAND ...\n\ncommands (each has --help):", file=sys.stdout if asked else sys.stderr)
    for name, command in COMMANDS.items():
        print(f"  {name}: {(command.__doc__ or '').splitlines()[0]}", file=sys.stdout if asked else sys.stderr)
    sys.exit(0 if asked else 2)


def _run(name: str, command: Callable[..., None], words: Sequence[str]) -> None:
    """Runs `command` with the arguments that `words` say.

    Raises:
      ConfigError: the words do not fit it.
    """

    @functools.wraps(command)
    def bind(*args: Any, **kwargs: Any) -> Callable[[], None]:
        return functools.partial(command, *args, **kwargs)

    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            bound = tyro.cli(bind, prog=f"deeplab-jax {name}", args=words)
    except SystemExit as stop:
        if not stop.code:
            raise
        # tyro frames its message, on a terminal with lines, and adds where to find help.
        message, _, _ = " ".join(re.sub(r"[│╭╮╰╯─]+|-{3,}", " ", box.getvalue()).split()).partition(" For full helptext")
        raise ConfigError(f"{message.rstrip('.')}: see deeplab-jax {name} --help") from None
    bound()


def define_host_flags() -> None:
    """The flags of `joined_hosts`, for programs that run on several hosts."""
    flags.DEFINE_string("coordinator", None, "HOST:PORT at which process 0 listens, for a run of several processes.")
    flags.DEFINE_integer("num_processes", None, "How many processes the run has; found by itself under a launcher.")
    flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")


@contextlib.contextmanager
def joined_hosts() -> Iterator[Console]:
    """A program's part that computes: the processes of the run have found each other, and an error on one ends it there.

    Yields:
      A console that is quiet on all processes but the first.

    Raises:
      ConfigError: the flags do not fit together, or the processes do not find each other.
    """
    import jax

    from deeplab_jax.runtime import hosts

    with hosts.leave_on_error():
        hosts.start(flags.FLAGS.coordinator, flags.FLAGS.num_processes, flags.FLAGS.process_id)
        yield Console(soft_wrap=True, highlight=False, quiet=jax.process_index() > 0)


def run_with_flags(program: Callable[[], None]) -> None:
    """Parses absl's flags and runs `program`; an error that is the user's to mend becomes one line and exit code 2."""
    # Orbax and TensorFlow report every save and every kernel at "info".
    logging.set_verbosity(logging.WARNING)
    app.run(lambda _: _or_exit(program), flags_parser=lambda argv: _or_exit(lambda: _parse_flags(argv)))


def checked_config(config: Any) -> Config:
    """The value of a `--config` flag, validated.

    Raises:
      ConfigError: no file was given, it cannot be read, it holds no `Config`, or `validate` objects.
    """
    if config is None:
        raise ConfigError(_NO_CONFIG)
    if not isinstance(config, Config):
        # config_flags defers the error of an unreadable file until an attribute is asked for.
        try:
            config.seed  # noqa: B018
        except OSError as error:
            raise ConfigError(f"`--config` cannot be used: {_one_line(error)}") from None
        except AttributeError:
            pass
        raise ConfigError(f"`--config` holds a {type(config).__name__}: get_config() must return a deeplab_jax.config.Config")
    return validate(config)


def recipe(path: str, fields: Sequence[str] = ()) -> Config:
    """The config of a recipe, as `--config=path --config.FIELD=VALUE ...` of train.py give it.

    Raises:
      ConfigError: see `checked_config`; or a field does not exist or cannot have the value.
    """
    words = ["", f"--config={path}", *(f"--config.{field}" for field in fields)]
    values = flags.FlagValues()
    flag = config_flags.DEFINE_config_file("config", None, "", values, sys_argv=words)
    _parse_flags(words, values)
    return checked_config(flag.value)


def checked_folder(flag: str, value: str | None, example: str) -> str:
    """The value of a flag that names a folder, which need not exist.

    Raises:
      ConfigError: it is missing, or names a file.
    """
    if not value:
        raise ConfigError(f"`{flag}` is missing: give a run's folder, such as {flag}={example}")
    if epath.Path(value).is_file():
        raise ConfigError(f"`{flag}` (={value!r}) is a file: give a folder, such as {flag}={example}")
    return value


def _parse_flags(argv: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> list[str]:
    try:
        rest = values(list(argv))
    except flags.Error as error:
        # The flags of fields exist once a recipe is given.
        is_field = isinstance(error, flags.UnrecognizedFlagError) and error.flagname.startswith("config.")
        raise ConfigError(_NO_CONFIG if is_field else _one_line(error)) from None
    except dataclasses.FrozenInstanceError:
        raise ConfigError("`--config.labels` cannot be set by flags: write the label set in the config file") from None
    # What config_flags lets through of a recipe that cannot be imported, and of fields that do not exist.
    except (KeyError, OSError, TypeError, SyntaxError, ImportError, AttributeError) as error:
        raise ConfigError(_unknown_field(str(error)) or f"`--config` cannot be used: {_one_line(error)}") from None
    given = collections.Counter(re.findall(r"^--?(config\.[\w.]+)", "\n".join(argv), re.MULTILINE))
    for name, times in given.items():
        if times > 1 and isinstance(values[name].value, list):  # a tuple's, which would become one longer tuple
            raise ConfigError(f"`--{name}` is given {times} times: give it once")
    if rest[1:]:
        raise ConfigError(f"`{rest[1]}` is no flag: fields of the config are set with --config.FIELD=VALUE")
    return rest


def _one_line(error: BaseException) -> str:
    # config_flags puts a whole traceback into some messages: its last line is the reason.
    head, _, trace = str(error).partition("Traceback")
    line = " ".join(f"{head} {trace.strip().splitlines()[-1] if trace else ''}".split())
    return re.sub(r".*Failed loading config file.*(?=\[Errno)", "", line)


def _unknown_field(message: str) -> str:
    """What to say of a field that config_flags did not find; "" if `message` is about something else."""
    found = re.search(r"Field (?P<name>\w+) not found on dataclass .*\.(?P<owner>\w+)'", message)
    found = found or re.search(r"\.(?P<owner>\w+)'>\.(?P<name>\w+) does not exist", message)
    if not found:
        return ""
    known = [field.name for field in dataclasses.fields(getattr(config_module, found["owner"]))]
    near = "".join(f"did you mean {name}? " for name in difflib.get_close_matches(found["name"], known, n=1))
    return f"`{found['name']}` is no field of the config's {found['owner']}: {near}it has {', '.join(known)}"


def _or_exit(work: Callable[[], T]) -> T:
    try:
        return work()
    except DeeplabError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
