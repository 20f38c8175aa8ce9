"""The `deeplab-jax data import` command."""

import os
import shlex
from pathlib import Path
from typing import Annotated, Literal

import tyro
from etils import epath
from rich.console import Console
from rich.progress import Progress

from deeplab_jax.commands.data import LABELS_FILE, Root, list_next_commands
from deeplab_jax.commands.printing import print_line
from deeplab_jax.errors import ConfigError, DataError, choose
from deeplab_jax.files import require_local
from deeplab_jax.labels.files import write_labels


def import_annotations(
    root: Root,
    tool: Annotated[str, tyro.conf.arg(name="from", metavar="TOOL")],
    out: str,
    unlabelled: Literal["background", "ignored"] = "background",
    order: Literal["file", "area"] = "file",
    keep_empty: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Turn the export of an annotation tool into images, masks and a label-set file that training can read.

    Whatever cannot be used is listed at the end. docs/how-to/import-annotations.md lists the tools and what is read for each.

    Args:
      root: The folder of the export, unpacked.
      tool: The tool or the format of the export, such as labelme or coco.
      out: The folder to create. It must be new or empty.
      unlabelled: What pixels without a shape become: the class background (id 0), or ignored (value 255).
      order: The drawing order. With file, it is the order in the annotation file, so the last shape is on top. With area,
        larger shapes are drawn first, so smaller ones are on top.
      keep_empty: Keep images without shapes. Use this if they are finished and show only background.
    """
    from deeplab_jax.data.importers import IMPORTERS, Notes
    from deeplab_jax.data.importers.label_ids import find_alike, make_label_set
    from deeplab_jax.data.importers.write import Drawing, fill_value, new_folder, require_output, write_samples

    read = choose(tool, IMPORTERS, "--from")
    # The finished import is renamed to the output folder, which cannot replace a link.
    source_folder, folder = _require_root(root), Path(os.path.realpath(os.path.expanduser(require_local(out, "--out"))))
    require_output(source_folder, folder)
    console, notes = Console(soft_wrap=True, highlight=False, emoji=False), Notes()
    try:
        source = read(source_folder, notes)
        if not source.annotations:
            raise DataError(f"No image in `ROOT` (={root!r}) has {tool} annotations. Give the folder of the export.")
        labels, ids = make_label_set(folder.name or tool, source, has_background=unlabelled == "background")
        for alike in find_alike(source.classes):
            notes.add("class names that look alike (kept as separate classes)", alike)
        drawing = Drawing(ids, fill_value(unlabelled), order, keep_empty)
        with new_folder(folder) as part:
            with Progress(console=Console(stderr=True), transient=True) as bar:
                task = bar.add_task("images", total=len(source.annotations))
                counts = write_samples(source, part, drawing, notes, lambda: bar.advance(task))
            if not counts:
                raise DataError(f"None of the {len(source.annotations)} annotated images below {root} could be imported.")
            write_labels(epath.Path(part / LABELS_FILE), labels)
    finally:
        for line in notes.lines():
            print_line(console, f"note: {line}")
    total = ", ".join(f"{split}: {counts[split]}" for split in sorted(counts))
    print_line(console, f"Wrote the images ({total}) and {labels.num_classes} classes to {out}. To check and train, run:")
    path = str(Path(out).expanduser())
    for command in list_next_commands(path, f"{path}/{LABELS_FILE}", "auto", (), sorted(counts)):
        print_line(console, f"  {shlex.join(command)}")


def _require_root(root: str) -> Path:
    path = Path(os.path.abspath(os.path.expanduser(require_local(root, "ROOT"))))
    if path.is_file():
        raise ConfigError(f"`ROOT` (={root!r}) is a file. Unpack it if it is an archive, and give the folder.")
    if not path.is_dir():
        raise ConfigError(f"`ROOT` (={root!r}) is not a folder. Give the folder of the export.")
    return path
