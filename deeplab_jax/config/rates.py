"""Atrous rates at every output stride, from those that a config gives at one."""


def aspp_rates(atrous_rates: tuple[int, ...], output_stride: int) -> tuple[float, ...]:
    """Return the rates of the ASPP branches at `output_stride`, from those at 16."""
    return tuple(rate * 16 / output_stride for rate in atrous_rates)


def last_stage_rates(multi_grid: tuple[float, ...], output_stride: int) -> tuple[float, ...]:
    """Return the atrous rate of each given block of the last stage, in pixels of that convolution's input.

    The first block's input still has stride 16 where the stage keeps its stride (output stride 32). With rates defined on
    the input, the features at every output stride are those of the undilated network, subsampled.
    """
    first, rest = multi_grid[:1], multi_grid[1:]
    return tuple(g * 32 / min(16, output_stride) for g in first) + tuple(g * 32 / output_stride for g in rest)


def multi_grid_units(rates: tuple[float, ...], output_stride: int) -> tuple[float, ...]:
    """Return the inverse of `last_stage_rates`."""
    first, rest = rates[:1], rates[1:]
    return tuple(rate * min(16, output_stride) / 32 for rate in first) + tuple(rate * output_stride / 32 for rate in rest)


def unit_of_each_block(multi_grid: tuple[float, ...], blocks: int) -> tuple[float, ...]:
    """Return `multi_grid` for a last stage of `blocks` blocks: its last number repeats."""
    return (*multi_grid, *multi_grid[-1:] * blocks)[:blocks]
