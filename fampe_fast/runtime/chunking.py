"""Choose the number of images per model pass, and halve it once after an out-of-memory error, unless it is pinned."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import TypeVar

from torch import Tensor, nn

from ..errors import warn
from .chunk_probe import Rows, Surroundings, fastest_size
from .cuda_graphs import release_captures
from .device_memory import free_memory
from .model import Model, chunk_size
from .model_probe import ModelInfo, probe
from .out_of_memory import is_out_of_memory, release_memory, with_advice
from .per_model import cache_of

Result = TypeVar("Result")

_UNKNOWN = Rows()

# Share of the free memory to use; the rest is for workspaces and fragmentation.
_SHARE = 0.8
# The backward pass holds gradients of activations beside what the forward pass has saved.
_BESIDE = 2
# Spectrum, sample, gradient and their like, in units of a sample.
_OWN = 8

_pinned: ContextVar[bool] = ContextVar("pinned", default=False)


@contextmanager
def pinned_chunks() -> Iterator[None]:
    """Never halve a chunk inside the context, for results that must not depend on the free memory.

    Raises:
        torch.OutOfMemoryError: a call runs out of memory; it is not repeated with a smaller size.
    """
    before = _pinned.set(True)
    try:
        yield
    finally:
        _pinned.reset(before)


def are_pinned() -> bool:
    """Tell whether sizes are taken as they are asked for (``pinned_chunks``)."""
    return _pinned.get()


class ChunkSize:
    """The number of images per model pass, for one run.

    Attributes:
        size: the largest number of images in a pass.
    """

    def __init__(self, models: tuple[Model, ...], images: Tensor, size: int, kind: Hashable) -> None:
        """Take a size, or the one that fitted before if that is smaller.

        Args:
            models: the models that are called.
            images: (B, C, H, W), the images the passes are made of.
            size: images per pass, if they fit.
            kind: the kind of pass; the size that fitted is remembered for each kind.
        """
        self._models = models
        self._images = tuple(images.shape)
        self._device = images.device
        self._key = images.device, self._images[1:], kind
        self._halved = _pinned.get()
        fitted = [] if self._halved else [known[self._key] for known in self._known() if self._key in known]
        self.size = min([size, *fitted])

    @classmethod
    def for_gradients(
        cls,
        models: tuple[Model, ...],
        images: Tensor,
        asked: int | None,
        precision: str = "auto",
        probed: Sequence[ModelInfo] | None = None,
        rows: Rows = _UNKNOWN,
        around: Surroundings = nullcontext,
    ) -> ChunkSize:
        """Choose the size for forward and backward passes over samples of images.

        Args:
            models: the models that are called.
            images: (B, C, H, W), the images to explain.
            asked: the caller's choice; None for 8 on a CPU and 64 elsewhere, or as many as fit into the free memory. On
                a CUDA device a long run uses the fastest of ``chunk_probe.SIZES`` that fit.
            precision: the precision of the passes.
            probed: the models' ``ModelInfo``, if they have been probed.
            rows: the images that the call shows them.
            around: context manager for passes that are timed, which sets their precision.

        Raises:
            TypeError, ValueError: a choice that is not a whole number of at least 1, or models that ``probe`` refuses.
        """
        size = chunk_size(asked, images.device)
        if len(images):
            found = [probe(model, images) for model in models] if probed is None else probed
            size = min(_at_most(size, asked, one) for one in found)
            if asked is None:
                each = zip(models, found, strict=True)
                size = min(_chosen(model, images, one, size, rows, precision, around) for model, one in each)
        return cls(models, images, size, precision)

    @classmethod
    def for_scores(cls, model: Model, images: Tensor, asked: int | None, probed: ModelInfo | None = None) -> ChunkSize:
        """Choose the size for forward passes, which store nothing for a backward pass.

        Args:
            model: the model that is called.
            images: (B, C, H, W), the images whose variants will be scored.
            asked: the caller's choice; None for 8 on a CPU and 64 elsewhere.
            probed: the model's ``ModelInfo``, if it has been probed.

        Raises:
            TypeError, ValueError: a choice that is not a whole number of at least 1, or a model that ``probe`` refuses.
        """
        size = chunk_size(asked, images.device)
        if len(images):
            size = _at_most(size, asked, probe(model, images) if probed is None else probed)
        return cls((model,), images, size, "scores")

    def run(self, call: Callable[[int], Result], rows: int) -> Result:
        """Call with the size; after an out-of-memory error, call again with half of it, once in a run.

        Where the models' captured passes hold memory, it is freed first, and the same size is tried again.

        Args:
            call: makes passes of at most the given number of images.
            rows: the number of images it divides into passes, evenly (``even_parts``).

        Raises:
            torch.OutOfMemoryError: half the size does not fit either.
        """
        with_captures = True
        while True:
            try:
                return call(self.size)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                tried = -(-rows // even_parts(rows, self.size))
                released = [with_captures and release_captures(model) for model in self._models]
                with_captures = any(released)
                if not with_captures and (self._halved or tried == 1):
                    raise
            # Outside the except block the traceback, which holds the call's tensors, is gone.
            if with_captures:
                with_captures = False
                release_memory(self._device)
            else:
                self._halve(tried)

    def each(self, rows: int, call: Callable[[slice], Result]) -> Iterator[tuple[slice, Result]]:
        """Call for one part of the rows after the other, each as in ``run``, and yield the results.

        Args:
            rows: the number of rows.
            call: makes one pass of a slice of them; called again with fewer after running out of memory.
        """
        begin = 0
        while begin < rows:

            def one(size: int, begin: int = begin) -> Result:
                return call(slice(begin, min(begin + size, rows)))

            found = self.run(one, min(self.size, rows - begin))
            end = min(begin + self.size, rows)
            yield slice(begin, end), found
            begin = end

    @contextmanager
    def advice(self) -> Iterator[None]:
        """Add advice to out-of-memory errors inside the context.

        Raises:
            torch.OutOfMemoryError: with the advice, in place of torch's own.
        """
        try:
            yield
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise with_advice(error, self.size, self._images) from error

    def _halve(self, tried: int) -> None:
        self._halved = True
        self.size = tried // 2
        for known in self._known():
            known[self._key] = self.size
        release_memory(self._device)
        warn(
            f"out of memory with {tried} images per model pass: continuing with {self.size}, in later calls with this "
            f"model as well (set internal_batch_size={self.size} to avoid this)"
        )

    def _known(self) -> list[dict[Hashable, int]]:
        """Look up each model's largest chunk that fitted after a larger one did not, by kind of pass."""
        return [cache_of(model, "chunks that fit") for model in self._models if isinstance(model, nn.Module)]


def _at_most(size: int, asked: int | None, probed: ModelInfo) -> int:
    """Lower the size to 1 for a model that takes one image at a time.

    Raises:
        ValueError: the caller chose more than 1 for such a model.
    """
    if not probed.single:
        return size
    if asked is not None and asked > 1:
        raise ValueError(
            f"the model takes one image at a time ({probed.single}), but internal_batch_size is {asked}: set it to 1"
        )
    if asked is None:
        warn(f"the model takes one image at a time ({probed.single}): every pass has one image (internal_batch_size=1)")
    return 1


def even_parts(rows: int, size: int) -> int:
    """Count the even parts of at most ``size`` that rows are cut into; a small remainder would cost more per row."""
    return -(-rows // size)


def _chosen(
    model: Model, images: Tensor, probed: ModelInfo, size: int, rows: Rows, kind: str, around: Surroundings
) -> int:
    """Choose the images per pass of one model: ``size``, or the fastest number where that was measured, if they fit."""
    limit = _that_fit(probed, images)
    if limit is None:
        return size
    found = None
    if images.device.type == "cuda" and not probed.single:
        found = fastest_size(model, images, probed, limit, rows, kind, around)
    return min(size, limit) if found is None else found


def _that_fit(probed: ModelInfo, images: Tensor) -> int | None:
    """Estimate how many samples fit into the free memory, at least one; None if unknown."""
    saved, free = probed.saved_bytes, free_memory(images.device)
    if saved is None or free is None:
        return None
    each = _BESIDE * saved + _OWN * images[0].numel() * 4
    return max(1, int(_SHARE * free / each))
