"""Compute radial frequencies on the device; see ``fampe_fast.reference.radius``."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

import triton
import triton.language as tl


@triton.jit
def signed_frequency(row, height):
    """Compute the integer frequency of a row, negative in the second half."""
    return tl.where(row > height // 2, row - height, row)


@triton.jit
def squared_radius(frequency, column, row_scale, column_scale):
    """Compute r^2 in float32, operation by operation as the reference; the scales are short/H and short/W."""
    along_rows = frequency.to(tl.float32) * row_scale
    along_columns = column.to(tl.float32) * column_scale
    return along_rows * along_rows + along_columns * along_columns


@triton.jit
def scaled_radius(frequency, column, height, width):
    """Compute ``r^2 * long^2`` in float64, a whole number, as the reference's ``inside_radius``."""
    down = (frequency * width).to(tl.float64)
    across = (column * height).to(tl.float64)
    return down * down + across * across


@triton.jit
def shell_index(frequency, column, height, width):
    """Compute ``ceil(r)`` exactly, int32: a rounded root as guess, decided in 64-bit integers, sides up to 32768.

    Below that the guess is off by less than one, so one step either way is enough.
    """
    short = tl.minimum(height, width).to(tl.int64)
    long = tl.maximum(height, width).to(tl.int64)
    down = frequency.to(tl.int64) * tl.where(height <= width, long, short)
    across = column.to(tl.int64) * tl.where(height <= width, short, long)
    scaled = down * down + across * across  # r^2 * long^2
    shell = tl.ceil(tl.sqrt(scaled.to(tl.float32)) / long.to(tl.float32)).to(tl.int64)
    below = (shell - 1) * long
    shell = tl.where((shell > 0) & (below * below >= scaled), shell - 1, shell)
    reach = shell * long
    return tl.where(reach * reach < scaled, shell + 1, shell).to(tl.int32)


@triton.jit
def on_edge(column, width):
    """Tell whether a column of the half spectrum occurs only once in the full one: DC, or Nyquist of an even width."""
    return (column == 0) | (2 * column == width)
