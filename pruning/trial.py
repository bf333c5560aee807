"""One question about one picture, with and without pruning, and what each costs."""

from __future__ import annotations

import time
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mm.pruning.attach import Attached
from mm.pruning.base import Pruner
from mm.pruning.cost import Cost, call_cost, plain_cost
from mm.pruning.hosts import open_host
from mm.pruning.hosts.llava import LlavaHost
from mm.pruning.hosts.own import OwnHost
from mm.pruning.keep_map import keep_map


class Trial:
    """A model, a picture and a question.

    Args:
        model: What `VisionLanguageModel.from_pretrained` gave.
        image: RGB.
        prompt: The question.
        max_new_tokens: Longest answer.
    """

    def __init__(self, model: Any, image: Image.Image, prompt: str, *, max_new_tokens: int = 32) -> None:
        self.model, self.image = model, image
        self.max_new_tokens = max_new_tokens
        self.inputs: dict[str, Tensor] = model.prepare([image], prompt)
        self.host = open_host(model)
        self._answer()  # warm-up: first calls pay for lazy set-up

    def unpruned(self) -> dict[str, Any]:
        """Answer and cost of the model as it is."""
        answer, seconds = self._answer()
        return _row(answer, seconds, plain_cost(self.host, self.inputs))

    def pruned(self, pruner: Pruner) -> tuple[dict[str, Any], Image.Image | None]:
        """Answer and cost under a method, and its keep map where one can be drawn."""
        with pruner.attach(self.model) as session:
            answer, seconds = self._answer()
            row = _row(answer, seconds, call_cost(session, self.inputs))
            return row, self._map(session)

    @torch.inference_mode()
    def _answer(self) -> tuple[str, float]:
        _wait(self.model.device)
        start = time.perf_counter()
        ids = self.model.generate(**self.inputs, max_new_tokens=self.max_new_tokens)
        _wait(self.model.device)
        seconds = time.perf_counter() - start
        decode = getattr(self.model, "decode", None) or self.model.processor.decode
        return decode(ids)[0], seconds

    def _map(self, session: Attached) -> Image.Image | None:
        """Panels of the first view; methods inside the language model are shown by its blocks."""
        grid = self._grid()
        if session.pruned:
            pruned = session.pruned[0]
            return keep_map(self._shown(), pruned.last_block[0], pruned.tokens_per_layer.shape[1] - 1, grid)
        if session.language is not None and isinstance(self.host, LlavaHost) and self.host.layout == "plain":
            return keep_map(self._shown(), session.language.last_blocks(), session.language.depth, grid)
        return None

    def _grid(self) -> tuple[int, int]:
        """(h, w) tokens of the first view."""
        if isinstance(self.host, OwnHost):
            return self.model.tower.grid
        if "image_grid_thw" in self.inputs:
            side = self.host.tower.spatial_merge_size  # type: ignore[union-attr]
            _, height, width = self.inputs["image_grid_thw"][0].tolist()
            return height // side, width // side
        side = round(self.host.patches**0.5)  # type: ignore[attr-defined]
        return side, side

    def _shown(self) -> Image.Image:
        """The picture as the encoder saw it, where the model keeps it as pixels."""
        if not isinstance(self.host, OwnHost):
            return self.image
        preprocessing = self.model.tower.preprocessing
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preprocessing.mean, preprocessing.std))
        pixels = self.inputs["pixel_values"][0].float().cpu() * std + mean
        return Image.fromarray((pixels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())


def _row(answer: str, seconds: float, cost: Cost) -> dict[str, Any]:
    return {
        "answer": answer,
        "visual_tokens": cost.visual_tokens,
        "per_block": cost.average_visual_tokens,
        "tflop": cost.total_flops / 1e12,
        "encoder_tflop": cost.encoder_flops / 1e12,
        "seconds": seconds,
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
