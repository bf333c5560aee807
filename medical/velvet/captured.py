"""A training step recorded once as a CUDA graph and replayed: small models wait for Python's launches otherwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

Compute = Callable[[Mapping[str, Tensor]], tuple[Tensor, dict[str, Tensor]]]


class CapturedStep:
    """Forward, backward, clipping and AdamW on batches of one shape.

    Args:
        compute: Batch -> (loss to minimise, further losses); must not wait for the device or draw on the CPU.
        parameters: What is trained, on a CUDA device.
        optimizer: Over them, with `capturable=True` and a tensor as learning rate.
        example: A batch; later ones need its shapes and types.
        clip_norm: Largest norm of all gradients.

    The recording trains on the example for three steps first.
    """

    def __init__(
        self,
        compute: Compute,
        parameters: list[nn.Parameter],
        optimizer: torch.optim.Optimizer,
        example: Mapping[str, Tensor],
        clip_norm: float = 1.0,
    ) -> None:
        self.compute, self.parameters, self.optimizer, self.clip_norm = compute, parameters, optimizer, clip_norm
        self.inputs = {name: value.clone() for name, value in example.items()}
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self._step()
        torch.cuda.current_stream().wait_stream(side)
        optimizer.zero_grad(set_to_none=True)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.losses = self._step()

    def _step(self) -> dict[str, Tensor]:
        return step(self.compute, self.parameters, self.optimizer, self.inputs, self.clip_norm)

    def __call__(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One step; the losses are overwritten by the next.

        Raises:
            ValueError: another shape than the example's.
        """
        for name, value in batch.items():
            if value.shape != self.inputs[name].shape:
                raise ValueError(f"{name} must be {tuple(self.inputs[name].shape)}, got {tuple(value.shape)}")
            self.inputs[name].copy_(value)
        self.graph.replay()
        return self.losses


def step(
    compute: Compute,
    parameters: list[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    batch: Mapping[str, Tensor],
    clip_norm: float = 1.0,
) -> dict[str, Tensor]:
    """The same step without a recording, on any device."""
    optimizer.zero_grad(set_to_none=True)
    loss, losses = compute(batch)
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, clip_norm)
    optimizer.step()
    return {name: value.detach() for name, value in losses.items()}
