"""A tiny host, a tokenizer made in memory, and pictures."""

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from mm.backbone import LanguageBackbone
from mm.vision import ImagePreprocessing, TowerConfig, build_tower
from mm.vlm import PromptConfig, VisionLanguageModel

WORDS = tuple("what is in row one two three red blue five six seven a an the USER : ASSISTANT ? .".split())  # noqa: SIM905
TOWER = TowerConfig(
    name="vit_tiny_patch16_224",
    options={"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4},
    preprocessing=ImagePreprocessing(size=16),
)


def build_tokenizer(*specials: str, bos: bool = True) -> PreTrainedTokenizerFast:
    """One id per word; `specials` are further special tokens."""
    vocabulary = ["<pad>", "<s>", "</s>", "<unk>", *WORDS]
    core = Tokenizer(WordLevel({word: index for index, word in enumerate(vocabulary)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    if bos:
        core.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.add_tokens(list(specials), special_tokens=True)
    return tokenizer


@torch.no_grad()
def draw(module: torch.nn.Module, seed: int = 0) -> None:
    """Weights large enough that a wrong position, mask or activation shows far above rounding."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        parameter.copy_(centre + 0.15 * torch.randn(parameter.shape, generator=generator))


@pytest.fixture(scope="session")
def word_tokenizer():
    return build_tokenizer


@pytest.fixture(scope="session")
def redraw():
    return draw


@pytest.fixture(scope="session")
def picture():
    """Seed -> a random picture."""

    def make(seed: int, size: tuple[int, int] = (20, 24)) -> np.ndarray:
        return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)

    return make


@pytest.fixture
def make_host():
    def make(family: str = "llama", tokenizer=None, **options) -> VisionLanguageModel:
        tokenizer = tokenizer or build_tokenizer("<image>")
        options.setdefault("prompt", PromptConfig(template="USER : {prompt} ASSISTANT :"))
        backbone = LanguageBackbone.tiny(family, vocab_size=len(tokenizer), depth=3)
        model = VisionLanguageModel.from_parts(build_tower(TOWER), backbone, tokenizer, **options)
        draw(model.tower)
        draw(model.projector, seed=1)
        return model.eval()

    return make


@pytest.fixture
def host(make_host) -> VisionLanguageModel:
    return make_host()
