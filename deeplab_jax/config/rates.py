"""Atrous rates at every output stride, computed from the rates that a config gives for one output stride."""


def aspp_rates(atrous_rates: tuple[int, ...], output_stride: int) -> tuple[float, ...]:
    """Return the rates of the ASPP branches at `output_stride`, given the rates at output stride 16."""
    return tuple(rate * 16 / output_stride for rate in atrous_rates)


def last_stage_rates(multi_grid: tuple[float, ...], output_stride: int) -> tuple[float, ...]:
    """Return the atrous rates of the blocks in the last stage, in pixels of each convolution's input.

    At output stride 32, the last stage keeps its stride, so the input of its first block still has stride 16. Rates are defined
    with respect to the input, and therefore the features at every output stride are a subsampling of those of the undilated
    network.

    Args:
      multi_grid: The rates in units of the last stage's own rate, 32 / output_stride. Each number gives the rate of one block.
      output_stride: The output stride of the network.
    """
    first, rest = multi_grid[:1], multi_grid[1:]
    return tuple(g * 32 / min(16, output_stride) for g in first) + tuple(g * 32 / output_stride for g in rest)


def multi_grid_units(rates: tuple[float, ...], output_stride: int) -> tuple[float, ...]:
    """Return the multi-grid that gives these rates. This is the inverse of `last_stage_rates`."""
    first, rest = rates[:1], rates[1:]
    return tuple(rate * min(16, output_stride) / 32 for rate in first) + tuple(rate * output_stride / 32 for rate in rest)


def unit_of_each_block(multi_grid: tuple[float, ...], blocks: int) -> tuple[float, ...]:
    """Return `multi_grid` with one number for each of the `blocks` blocks in the last stage. Its last number is repeated."""
    return (*multi_grid, *multi_grid[-1:] * blocks)[:blocks]
