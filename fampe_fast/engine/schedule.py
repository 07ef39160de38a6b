"""Order the samples of a step, and divide them into chunks."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..runtime.chunking import even_parts
from .config import PathConfig
from .placements import draw_placements
from .samplers import Chunk


class Schedule:
    """The order of a path's samples, drawn and uploaded before the path starts, so that no step waits for the host.

    Within a step the samples without input diversity come first. Takes 40 bytes per step and sample number.

    Attributes:
        size: height and width of the images, in pixels.
        device: device of the samples.
    """

    def __init__(self, config: PathConfig, batch: int, height: int, width: int, device: torch.device) -> None:
        """Draw the placements of all steps.

        Args:
            config: configuration of the path.
            batch: B.
            height: H of the images.
            width: W of the images.
            device: device of the samples.
        """
        self.size = height, width
        self._batch = batch
        self.device = device
        self._plain = [config.samples] * config.steps
        # [T, N] sample numbers in their order, and [T, N, 4] height, width, top and left
        numbers = torch.arange(config.samples, device="cpu").repeat(config.steps, 1)
        placements = torch.zeros(config.steps, config.samples, 4, dtype=torch.long, device="cpu")
        if config.input_diversity:
            drawn = draw_placements(config.seed, config.steps, config.samples, height, width)
            # [T][N], the plain samples of each step first
            orders = [
                [number for diverse in (False, True) for number, of in enumerate(places) if (of is not None) == diverse]
                for places in drawn
            ]
            numbers = torch.tensor(orders, device="cpu")
            placements = torch.tensor(
                [[places[n] or (0, 0, 0, 0) for n in order] for places, order in zip(drawn, orders, strict=True)],
                device="cpu",
            )
            self._plain = [sum(of is None for of in places) for places in drawn]
        # [2 * T], every number twice: kernels have a form of their own for addresses that are no multiples of 16 bytes.
        self._steps = torch.arange(2 * config.steps, device=device).div(2, rounding_mode="floor")
        self._numbers = numbers.to(device)
        self._placements = placements.to(device)

    @property
    def most_rows(self) -> int:
        """The largest number of rows of one kind, diversified or not, that a step divides into chunks."""
        samples = self._numbers.shape[1]
        return self._batch * max(max(plain, samples - plain) for plain in self._plain)

    def step_number(self, step: int) -> Tensor:
        """Return a step's number as a () int64 tensor on the device."""
        return self._steps[2 * step]

    def chunks(self, step: int, size: int) -> Iterator[Chunk]:
        """Cut a step's pairs, image by image, into even parts of at most ``size`` rows.

        So a chunk shows few images, whose spectra and sums it reads once. Of an even size all parts but the last have
        an even number of rows: they begin at multiples of 16 bytes.
        """
        plain, samples = self._plain[step], self._numbers.shape[1]
        for first, last, diverse in ((0, plain, False), (plain, samples, True)):
            rows = self._batch * (last - first)
            if not rows:
                continue
            # [rows], and so are the pairs' samples; placements [rows, 4]
            flat = torch.arange(rows, device=self.device)
            image_index, position = flat // (last - first), flat % (last - first)
            numbers = self._numbers[step, first:last][position]
            places = self._placements[step, first:last][position] if diverse else None
            unit = 2 - size % 2
            units, count = -(-rows // unit), even_parts(rows, size)
            for k in range(count):
                part = slice(units * k // count * unit, units * (k + 1) // count * unit)
                # ``data`` is no view, whose base torch.compile would make a size of its own.
                yield Chunk(image_index[part].data, numbers[part].data, None if places is None else places[part].data)
