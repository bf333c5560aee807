"""Folders of Hugging Face models: whole, truncated, damaged, absent."""

import logging

import pytest
import torch
from safetensors.torch import load_file, save_file

from mm.backbone import LanguageBackbone


@pytest.fixture
def saved(tmp_path):
    """A saved tiny Llama: (folder, backbone)."""
    backbone = LanguageBackbone.tiny("llama")
    backbone.model.save_pretrained(tmp_path)
    return tmp_path, backbone


def rewrite(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def test_only_the_wanted_blocks_are_built(saved, caplog):
    folder, backbone = saved
    with caplog.at_level(logging.INFO, logger="mm.backbone.loading"):
        short = LanguageBackbone.from_pretrained(folder, layers=1)
    per_block = sum(p.numel() for p in backbone.layers[0].parameters())
    assert sum(p.numel() for p in short.parameters()) == per_block + 64 * 32
    assert "blocks 1 of 4" in caplog.text and str(folder) in caplog.text


def test_dtype_is_that_of_the_file_unless_given(saved, tmp_path):
    _, backbone = saved
    folder = tmp_path / "half"
    backbone.model.to(torch.bfloat16).save_pretrained(folder)
    assert LanguageBackbone.from_pretrained(folder).model.dtype == torch.bfloat16
    assert LanguageBackbone.from_pretrained(folder, dtype=torch.float32).model.dtype == torch.float32


def test_attention_implementation_is_passed_on(saved):
    backbone = LanguageBackbone.from_pretrained(saved[0], attn_implementation="eager")
    assert backbone.config._attn_implementation == "eager"


@pytest.mark.parametrize("layers", [None, 2])
def test_a_missing_tensor_stops_the_load(saved, layers):
    folder, _ = saved
    rewrite(folder, lambda tensors: tensors.pop("model.layers.0.mlp.up_proj.weight"))
    with pytest.raises(ValueError, match=r"missing: .*layers\.0\.mlp\.up_proj\.weight"):
        LanguageBackbone.from_pretrained(folder, layers=layers)


@pytest.mark.parametrize("layers", [None, 2])
@pytest.mark.parametrize("name", ["projector.weight", "model.layers.1.self_attn.extra.weight"])
def test_a_left_over_tensor_stops_the_load(saved, layers, name):
    folder, _ = saved
    rewrite(folder, lambda tensors: tensors.update({name: torch.zeros(2)}))
    with pytest.raises(ValueError, match=r"not part of the model: .*" + name.split(".")[-2]):
        LanguageBackbone.from_pretrained(folder, layers=layers)


@pytest.mark.parametrize("layers", [0, 5])
def test_impossible_depth_is_named(saved, layers):
    with pytest.raises(ValueError, match=rf"layers must lie in 1\.\.4, got {layers}"):
        LanguageBackbone.from_pretrained(saved[0], layers=layers)


def test_absent_folder_never_reaches_the_network(monkeypatch, tmp_path):
    import socket

    def refuse(*_args, **_kwargs):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for path in (tmp_path / "absent", "./absent", "absent", "a/b/c"):
        with pytest.raises(FileNotFoundError, match="no such folder, and not a hub id"):
            LanguageBackbone.from_pretrained(path)
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        LanguageBackbone.from_pretrained(tmp_path)


def test_folder_of_an_unknown_family_is_refused_before_its_weights_are_read(tmp_path):
    from transformers import BloomConfig

    BloomConfig(hidden_size=16, n_layer=1, n_head=2).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no layout for model type 'bloom'; known families: gemma"):
        LanguageBackbone.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "newest"}')
    with pytest.raises(ValueError, match="no layout for model type 'newest'; known families: gemma"):
        LanguageBackbone.from_pretrained(tmp_path)


def test_the_tokenizer_travels_with_the_model(saved):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder, _ = saved
    words = Tokenizer(models.WordLevel({"<pad>": 0, "red": 1, "cube": 2}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>").save_pretrained(folder)
    assert LanguageBackbone.from_pretrained(folder).tokenizer("red cube")["input_ids"] == [1, 2]
