"""Report a run of the kernels: the table, the sizes at which a kernel loses, and the bars that were met."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..common.results import KernelRow
from .sizes import USUAL, Size

BARS = {"band_mix": 0.8, "gradient_step": 0.8}
"""Share of the floor that a kernel must reach at ``USUAL``."""

SAMPLING_BARS = {"eager": 8.0, "compiled": 3.0}
"""How many times faster than each provider sampling as a whole must be there."""


@dataclass(frozen=True)
class Loss:
    """A size at which the kernel is slower than a provider.

    Attributes:
        kernel: the primitive.
        size: of the batch.
        provider: the faster one.
        ratio: the kernel's time over the provider's.
        clear: whether the quartiles lie apart; otherwise the difference is within the spread.
    """

    kernel: str
    size: Size
    provider: str
    ratio: float
    clear: bool

    def __str__(self) -> str:
        doubt = "" if self.clear else " (within the spread)"
        return f"{self.kernel} {self.size}: {self.ratio:.2f} times as long as {self.provider}{doubt}"


def losses(rows: Iterable[KernelRow]) -> list[Loss]:
    """Find every size at which the kernel loses to a provider, the worst first; rows of one machine."""
    measured = {(row.kernel, row.size, row.provider): row for row in rows if row.measured}
    found = []
    for (name, size, provider), other in measured.items():
        mine = measured.get((name, size, "kernel"))
        if provider == "kernel" or mine is None or not _us(mine.median_us) > _us(other.median_us):
            continue
        ratio = _us(mine.median_us) / _us(other.median_us)
        found.append(Loss(name, size, provider, ratio, _us(mine.lower_us) > _us(other.upper_us)))
    return sorted(found, key=lambda loss: -loss.ratio)


def speed_ups(rows: Iterable[KernelRow]) -> dict[tuple[str, Size, str], float]:
    """Divide each provider's time by the kernel's, by primitive, size and provider."""
    measured = {(row.kernel, row.size, row.provider): row for row in rows if row.measured}
    return {
        key: _us(row.median_us) / _us(measured[key[0], key[1], "kernel"].median_us)
        for key, row in measured.items()
        if key[2] != "kernel" and (key[0], key[1], "kernel") in measured
    }


def bars(rows: Sequence[KernelRow]) -> list[str]:
    """Tell for each bar what was reached, and whether that is enough."""
    said = []
    for name, bar in BARS.items():
        reached = [
            row.floor_share
            for row in rows
            if row.kernel == name and row.provider == "kernel" and row.measured and row.verified and _usual(row.size)
        ]
        for share in reached:
            said.append(_bar(f"{name} {USUAL}: {share:.0%} of its floor, bar {bar:.0%}", (share or 0) >= bar))
    for (name, size, provider), ratio in speed_ups(rows).items():
        if name == "band_samples" and _usual(size) and provider in SAMPLING_BARS:
            bar = SAMPLING_BARS[provider]
            said.append(_bar(f"sampling {size}: {ratio:.1f} times as fast as {provider}, bar {bar:.0f}", ratio >= bar))
    return said


def _usual(size: Size) -> bool:
    same = (size.images, size.height, size.width) == (USUAL.images, USUAL.height, USUAL.width)
    return same and size.samples in (0, USUAL.samples)


def _bar(text: str, met: bool) -> str:
    return f"{text}: {'met' if met else 'MISSED'}"


def _us(value: float | None) -> float:
    assert value is not None
    return value


def table(rows: Sequence[KernelRow]) -> str:
    """Write one line per row."""
    lines = [
        f"{'kernel':<18}{'size':<24}{'provider':<10}{'median us':>11}{'quartiles':>22}{'n':>5}{'host us':>11}"
        f"{'MB':>9}{'of bw':>7}{'floor us':>10}{'by':>8}{'of floor':>9}{'peak MB':>9}  {'form'}"
    ]
    for row in rows:
        head = f"{row.kernel:<18}{row.size!s:<24}{row.provider:<10}"
        if not row.measured:
            lines.append(f"{head}  {row.status}")
            continue
        peak = f"{row.peak_bytes / 1e6:.1f}" if row.peak_bytes is not None else "-"
        quartiles = f"{_us(row.lower_us):.1f}..{_us(row.upper_us):.1f}"
        lines.append(
            f"{head}{_us(row.median_us):>11.1f}{quartiles:>22}{row.repetitions:>5}{_us(row.host_us):>11.1f}"
            f"{row.bytes / 1e6:>9.2f}{row.bandwidth_share:>7.1%}{_us(row.floor_us):>10.2f}{row.floor_by:>8}"
            f"{row.floor_share:>9.1%}{peak:>9}  {row.form}{'' if row.verified else ' UNVERIFIED'}"
        )
    return "\n".join(lines)


def report(rows: Sequence[KernelRow]) -> str:
    """Write everything of a run's rows, all of one machine."""
    parts = [table(rows)]
    lost = losses(rows)
    parts.append(
        "\n".join(["The kernel loses at:", *(f"  {loss}" for loss in lost)] if lost else ["The kernel loses nowhere."])
    )
    if met := bars(rows):
        parts.append("\n".join(met))
    return "\n\n".join(parts)
