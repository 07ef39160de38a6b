"""Train adversarially: replace the images of a batch by the worst ones within a ball.

Madry, Makelov, Schmidt, Tsipras and Vladu, "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018,
arXiv 1706.06083.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..checks import (
    LARGEST,
    check_batch,
    check_bounds,
    check_count,
    check_positive,
    check_range,
    check_seed,
    check_targets,
)
from ..runtime.outputs import cross_entropy


class PGD:
    """Increase the loss of a batch's classes within a maximum-norm ball, by projected gradient descent.

    Each image starts at a random point of its ball, moves by ``step_size`` along the gradient's sign, and is projected
    onto the ball and the bounds after each step. Use it in the training loop of a model:

        loss = cross_entropy(model(pgd(model, images, labels)), labels)

    Args:
        eps: radius of the ball (maximum norm), in pixel units.
        steps: number of steps.
        step_size: size of each step, in pixel units. Default: ``2.5 * eps / steps``, with which every point of the ball
            can be reached from every other.
        bounds: smallest and largest pixel value.
        seed: seed of the starting points.

    Raises:
        TypeError: a number of a wrong type.
        ValueError: a radius or step that is not above 0, fewer than one step, or bounds that do not ascend.
    """

    def __init__(
        self,
        eps: float,
        *,
        steps: int = 5,
        step_size: float | None = None,
        bounds: tuple[float, float] = (0.0, 1.0),
        seed: int = 0,
    ) -> None:
        self.eps = check_positive("eps", eps, largest=LARGEST)
        self.steps = check_count("steps", steps)
        given = 2.5 * self.eps / self.steps if step_size is None else step_size
        self.step_size = check_positive("step_size", given, largest=LARGEST)
        self.bounds = check_bounds(bounds)
        # On the CPU, so that every device draws the same.
        self._generator = torch.Generator("cpu").manual_seed(check_seed(seed))

    def __call__(self, model: Callable[[Tensor], Tensor], images: Tensor, targets: Tensor) -> Tensor:
        """Perturb a batch, without changing the model's mode, weights or gradients.

        Args:
            model: from images (B, C, H, W) to logits (B, classes); a module is called in evaluation mode, so that the
                perturbed images do not change batch statistics.
            images: (B, C, H, W) floating-point, values in the bounds, any device.
            targets: (B,) integers, the classes whose loss is increased.

        Returns:
            (B, C, H, W) in their dtype, in the ball around them and in the bounds.

        Raises:
            TypeError: images that are not floating-point, or targets that are not integers.
            ValueError: images that are not (B, C, H, W) or not in the bounds, or another number of targets.
        """
        images = check_batch("images", images).detach()
        check_range(images, self.bounds, "put normalisation into the model, other ranges into `bounds`")
        targets = check_targets(targets, images)
        lower = (images - self.eps).clamp(min=self.bounds[0])
        upper = (images + self.eps).clamp(max=self.bounds[1])
        start = torch.rand(images.shape, dtype=torch.float32, device="cpu", generator=self._generator)
        current = (images + self.eps * (2 * start.to(images) - 1)).clamp(lower, upper)
        with _in_evaluation_mode(model), torch.enable_grad():
            for _ in range(self.steps):
                current.requires_grad_()
                loss = cross_entropy(model(current), targets, "softmax").sum()
                (gradient,) = torch.autograd.grad(loss, current)
                current = (current.detach() + self.step_size * gradient.sign()).clamp(lower, upper)
        return current


@contextmanager
def _in_evaluation_mode(model: object) -> Iterator[None]:
    if not isinstance(model, nn.Module):
        yield
        return
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
