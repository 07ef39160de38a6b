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
        device: where the samples are computed.
    """

    def __init__(self, config: PathConfig, batch: int, height: int, width: int, device: torch.device) -> None:
        """Draw the placements of all steps.

        Args:
            config: of the path.
            batch: B.
            height: H of the images.
            width: W of the images.
            device: where the samples are computed.
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
        """Divide a step's pairs, flattened with the image running fastest, into even parts of up to ``size`` rows."""
        plain, samples = self._plain[step] * self._batch, self._numbers.shape[1] * self._batch
        for start, stop, diverse in ((0, plain, False), (plain, samples, True)):
            count = even_parts(stop - start, size)
            for k in range(count):
                first, last = (start + (stop - start) * part // count for part in (k, k + 1))
                # [P], and so are the pairs' images and samples; placements [P, 4]
                flat = torch.arange(first, last, device=self.device)
                position = flat // self._batch
                places = self._placements[step][position] if diverse else None
                yield Chunk(flat % self._batch, self._numbers[step][position], places)
