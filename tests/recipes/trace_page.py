"""Generate docs/reference/recipes.md. Run `python tests/recipes/trace_page.py > docs/reference/recipes.md`."""

from typing import Any

import trace_deeplab2
import trace_mmseg
import trace_nvidia
import trace_paddleseg
from trace_rows import Row, Trace, list_ours, match_names

TRACES = (
    trace_mmseg.R50,
    trace_mmseg.R101,
    trace_paddleseg.R50_RMI,
    trace_paddleseg.R101_769,
    trace_nvidia.RX50,
    trace_deeplab2.R50_OS32,
)

INTRODUCTION = """# Recipes and their references

This page is generated with `python tests/recipes/trace_page.py > docs/reference/recipes.md`. A test compares it with the
recipes.

Each recipe follows a published config of another library. The tables have every value of that config, with what it inherits,
and our fields with their values. The last column says `equal` if one field has the reference's value, `same` if fields have the
same meaning in other terms, `no effect` if the trained network does not depend on it, and otherwise how the recipe differs.

None of these recipes has been run to completion.

| recipe in `configs/` | DeepLabV3+ with | published mIoU on val | batch, crop, steps |
| --- | --- | --- | --- |
| [`cityscapes_r50_v3plus.py`](#cityscapes_r50_v3plus) | ResNet-50-C | 80.09, mmsegmentation | 8, 512x1024, 80,000 |
| [`cityscapes_r101_v3plus.py`](#cityscapes_r101_v3plus) | ResNet-101-C | 80.97, mmsegmentation | 8, 512x1024, 80,000 |
| [`cityscapes_r50d_rmi.py`](#cityscapes_r50d_rmi) | ResNet-50-D | 81.18, PaddleSeg | 8, 512x1024, 80,000 |
| [`cityscapes_r101d_769.py`](#cityscapes_r101d_769) | ResNet-101-D | 81.53, PaddleSeg | 8, 769x769, 80,000 |
| [`cityscapes_x50_nvidia.py`](#cityscapes_x50_nvidia) | ResNeXt-50 | none for this network | 16, 896x896, 32,540 |
| [`cityscapes_r50_os32.py`](#cityscapes_r50_os32) | ResNet-50 | none (deeplab2) | 8, 1025x2049, 60,000 |

## Memory and time on H100 GPUs

What `deeplab-jax plan --config RECIPE --accelerator h100 --devices N --no-compile --images 2975` estimates (2026-11-29).
Memory is an estimate for each GPU. The first time is a lower bound, at the peak rate of the data sheet. The second one has
`--mfu 0.4`, and is more likely. Neither includes evaluations, checkpoints, communication, or waiting for data: for the second
time, 8 GPUs need 950 to 2300 images per second, so reading the images may decide instead.

"""


def render_page() -> str:
    """Return the page as Markdown."""
    return INTRODUCTION + _render_plan() + "".join(_render_trace(trace) for trace in TRACES)


def _render_plan() -> str:
    lines = [
        "| recipe | GPUs | memory per GPU, at least | time, at least | time at 40 % of the peak rate |",
        "| --- | --- | --- | --- | --- |",
    ]
    for trace in TRACES:
        for devices, (memory, least, likely) in trace.plan.items():
            lines.append(f"| `{trace.recipe}.py` | {devices} | {memory} | {least} | {likely} |")
    return "\n".join(lines) + "\n"


def _render_trace(trace: Trace) -> str:
    lines = [
        f"\n## {trace.recipe}\n",
        f"Reference: {trace.source}\n",
        f"Published mIoU: {trace.score}\n",
        "| reference | our fields | |",
        "| --- | --- | --- |",
    ]
    # A difference matters most to a reader, so it comes first.
    rows = sorted(trace.rows, key=lambda row: ("differs", "same", "equal", "no effect").index(row.relation))
    return "\n".join([*lines, *(_render_row(row, trace) for row in rows)]) + "\n"


def _render_row(row: Row, trace: Trace) -> str:
    theirs = _render_values({name: trace.reference[name] for name in match_names(row, trace)})
    relation = f"**{row.relation}**" if row.relation == "differs" else row.relation
    return f"| {theirs} | {_render_values(list_ours(row, trace))} | {relation}{': ' if row.note else ''}{row.note} |"


def _render_values(values: dict[str, Any]) -> str:
    return "<br>".join(f"`{name}={value}`" for name, value in values.items())


if __name__ == "__main__":
    print(render_page(), end="")
