"""Models and inputs that several backbone tests share."""

import pytest
import torch

from mm.backbone import LanguageBackbone

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "phi3", "openelm", "gpt2", "smollm")
MORE_FAMILIES = ("gemma", "gemma3_text", "gpt_neox", "opt", "phi", "smollm3")


@pytest.fixture(params=FAMILIES + MORE_FAMILIES)
def backbone(request):
    """A tiny random model of every family; windows of 8 keys where the family has windows."""
    return LanguageBackbone.tiny(request.param)


@pytest.fixture
def ids():
    """Two rows that are longer than the sliding window, without special tokens."""
    return torch.randint(3, 64, (2, 14), generator=torch.Generator().manual_seed(1))


def pad(ids, side, amount):
    """Add `amount` padding tokens on one side: (ids, mask)."""
    padding, ones = torch.zeros(len(ids), amount, dtype=torch.long), torch.ones_like(ids)
    order = (padding, ids) if side == "left" else (ids, padding)
    masks = (padding, ones) if side == "left" else (ones, padding)
    return torch.cat(order, dim=1), torch.cat(masks, dim=1)


class BlockCalls:
    """Counts how often each block of a backbone runs."""

    def __init__(self, backbone):
        self.counts = [0] * backbone.depth
        for i, block in enumerate(backbone.layers):
            block.register_forward_hook(lambda *_, i=i: self._add(i))

    def _add(self, i):
        self.counts[i] += 1
