"""Convert the atrous rates in a config to the rates at a given output stride."""


def aspp_rates(atrous_rates: tuple[int, ...], output_stride: int) -> tuple[float, ...]:
    """Return the ASPP branch rates at `output_stride`, given the rates at output stride 16."""
    return tuple(rate * 16 / output_stride for rate in atrous_rates)


def last_stage_rates(multi_grid: tuple[float, ...], output_stride: int) -> tuple[float, ...]:
    """Return the atrous rate of each block in the last stage, in pixels of the convolution's input.

    At output stride 32, the last stage keeps its stride, so the input to its first block still has stride 16. Because rates
    are relative to that input, subsampling a dilated network's features gives the undilated network's features.

    Args:
      multi_grid: Each block's rate, in units of the last stage's own rate, 32 / output_stride.
      output_stride: The network's output stride.
    """
    first, rest = multi_grid[:1], multi_grid[1:]
    return tuple(g * 32 / min(16, output_stride) for g in first) + tuple(g * 32 / output_stride for g in rest)


def multi_grid_units(rates: tuple[float, ...], output_stride: int) -> tuple[float, ...]:
    """Return the multi-grid that produces `rates`. This is the inverse of `last_stage_rates`."""
    first, rest = rates[:1], rates[1:]
    return tuple(rate * min(16, output_stride) / 32 for rate in first) + tuple(rate * output_stride / 32 for rate in rest)


def unit_of_each_block(multi_grid: tuple[float, ...], blocks: int) -> tuple[float, ...]:
    """Return exactly `blocks` numbers by truncating `multi_grid` or repeating its last number."""
    return (*multi_grid, *multi_grid[-1:] * blocks)[:blocks]
