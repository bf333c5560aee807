"""Encoder models in sentence-transformers layout."""

from __future__ import annotations

import json

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from mm.encoders.flame import SentenceTextEncoder, TextTowerConfig, load_text_tower
from tests.encoders.flame.conftest import relative

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "blue", "ring", "star", "."]
CAPTIONS = ["a red ring.", "a blue star. a red star. a ring.", ""]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random BERT as sentence-transformers saves it."""
    root = tmp_path_factory.mktemp("sentence")
    ids = {word: index for index, word in enumerate(WORDS)}
    plain = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    plain.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=plain, **names).save_pretrained(root)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48
    )
    config.initializer_range = 0.3
    BertModel(config).save_pretrained(root)
    write(root, ("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize"))
    (root / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 32, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    (root / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (root / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 12, "do_lower_case": False}))
    return root


def write(root, *modules):
    entries = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(modules)
    ]
    (root / "modules.json").write_text(json.dumps(entries))


def test_mean_over_real_tokens_in_any_batch(folder):
    encoder = SentenceTextEncoder.from_folder(folder)
    found = encoder.encode(CAPTIONS)
    assert found.shape == (3, 1, 32) and encoder.facets("long") == 1 and encoder.width == 32
    for row, caption in zip(found, CAPTIONS, strict=True):
        cut = {"truncation": True, "max_length": 12}  # the closing token stays
        ids = encoder.tokenizer(caption, return_tensors="pt", **cut)["input_ids"]
        with torch.no_grad():
            expected = encoder.model(ids).last_hidden_state[0].mean(dim=0)
        assert relative(row[0], expected) < 1e-5
        assert relative(encoder.encode([caption])[0, 0], expected) < 1e-5
    unit = encoder.encode(CAPTIONS, reduce="mean", normalize=True)
    assert unit.shape == (3, 32) and relative(unit.norm(dim=-1), torch.ones(3)) < 1e-6


def test_the_first_token_as_pooling(folder, tmp_path):
    encoder = SentenceTextEncoder.from_folder(folder)
    other = SentenceTextEncoder(encoder.model, encoder.tokenizer, pooling="cls")
    assert relative(other.encode(CAPTIONS[:1])[0], encoder.encode(CAPTIONS[:1])[0]) > 0.1
    assert other.fingerprint() != encoder.fingerprint()


def test_a_long_caption_is_cut_and_says_so(folder, caplog):
    encoder = SentenceTextEncoder.from_folder(folder)
    long = encoder.encode(["a red ring " * 30, "a red ring a red ring a red ring a red star"])
    assert "was cut to 12 tokens" in caplog.text
    assert torch.equal(long[0], encoder.encode(["a red ring " * 29])[0])


def test_the_tower_is_found_by_its_folder(folder):
    assert isinstance(load_text_tower(TextTowerConfig(language=str(folder))), SentenceTextEncoder)
    assert isinstance(SentenceTextEncoder.from_folder(folder).train().training, bool)
    assert not SentenceTextEncoder.from_folder(folder).train().model.training


def test_other_layouts(folder):
    try:
        write(folder, ("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "2_Dense"))
        with pytest.raises(ValueError, match="module Dense is not supported"):
            SentenceTextEncoder.from_folder(folder)
        write(folder, ("Transformer", ""))
        with pytest.raises(ValueError, match="no Pooling module"):
            SentenceTextEncoder.from_folder(folder)
    finally:
        write(folder, ("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize"))
    with pytest.raises(FileNotFoundError, match="no such folder"):
        SentenceTextEncoder.from_folder(folder / "none")
    with pytest.raises(ValueError, match="unknown template"):
        SentenceTextEncoder.from_folder(folder).encode(["a"], "x")
