"""Weights from elsewhere: the authors' layout there and back, CXR-BERT's layout, and everything that does not fit."""

from __future__ import annotations

import pytest
import torch

from mm.medical.velvet.config import VelvetConfig
from mm.medical.velvet.convert import load_bert, load_repository, repository_state
from mm.medical.velvet.model import VelvetModel
from mm.medical.velvet.text import TriBert
from tests.medical.velvet.conftest import small_text, small_vision


def model(seed: int, **changes) -> VelvetModel:
    torch.manual_seed(seed)
    return VelvetModel(VelvetConfig(vision=small_vision(), text=small_text(), contrastive_width=8, **changes))


@pytest.mark.parametrize("decoder", ["deconv", "unet"])
@pytest.mark.parametrize("temperature", ["raw", "log"])
def test_the_authors_layout_there_and_back(tmp_path, decoder, temperature):
    source, target = model(0, decoder=decoder, temperature=temperature), model(1, decoder=decoder)
    state = repository_state(source)
    for key in (
        "vision_ssl.vision_encoder.layers1.0.blocks.0.mlp.linear1.weight",
        "text_ssl.text_model.encoder.layer.2.crossattention.self.query.weight",
        "text_ssl.text_model.embeddings.token_type_embeddings.weight",
        "text_ssl.text_mlm_head.fc.2.bias",
        "mm_mlm_head.output.weight",
        "mm_adpater.1.weight",
        "top_itc_criterion.temperature",
    ):
        assert key in state
    block = "vision_ssl.recon_bottleneck.up_blocks.3." + ("0.weight" if decoder == "unet" else "weight")
    assert block in state and state["top_itc_criterion.temperature"].item() == pytest.approx(0.07)
    torch.save(state, tmp_path / "pytorch_model.bin")
    report = load_repository(target, tmp_path / "pytorch_model.bin")
    assert report.loaded == len(state) and "legacy" in str(report)
    ours, theirs = source.state_dict(), target.state_dict()
    for key in ours:
        if key != "temperature.value":
            assert torch.equal(ours[key], theirs[key]), key
    torch.testing.assert_close(source.temperature(), target.temperature())


def test_a_missing_and_a_strange_key_are_named():
    state = repository_state(model(0))
    state["something.else"] = state.pop("mm_match_head.weight")
    with pytest.raises(ValueError, match=r"missing \(1\): match\.weight(?s:.*)unexpected \(1\): something\.else"):
        load_repository(model(1), state)


def bert_state(layers: int = 3, pieces: int = 34, prefix: str = "bert."):
    from transformers import BertConfig, BertForMaskedLM

    config = small_text()
    torch.manual_seed(3)
    bert = BertForMaskedLM(
        BertConfig(
            vocab_size=pieces,
            hidden_size=config.width,
            intermediate_size=config.feed_forward,
            num_hidden_layers=layers,
            num_attention_heads=2,
            max_position_embeddings=config.max_tokens,
        )
    )
    return {key.removeprefix("" if prefix else "bert."): value for key, value in bert.state_dict().items()}


@pytest.mark.parametrize("prefix", ["bert.", ""])
def test_a_bert_starts_the_text_layers(prefix):
    text, state = TriBert(small_text()), bert_state(prefix=prefix)
    before = {key: value.clone() for key, value in text.state_dict().items()}
    report = load_bert(text, state)
    found, name = text.state_dict(), f"{prefix}embeddings.word_embeddings.weight"
    assert torch.equal(found["embeddings.word.weight"][:34], state[name])
    assert all(torch.equal(row, state[name][2]) for row in found["embeddings.word.weight"][34:]), "[SEN_k] is not [CLS]"
    first_type = state[f"{prefix}embeddings.token_type_embeddings.weight"][0]
    assert all(torch.equal(row, first_type) for row in found["embeddings.sentence.weight"][1:])
    assert not found["embeddings.sentence.weight"][0].any()
    query = f"{prefix}encoder.layer.1.attention.self.query.weight"
    assert torch.equal(found["layers.1.self_attention.query.weight"], state[query])
    fusion = [key for key in found if key.startswith(("layers.2.", "layers.3."))]
    assert fusion and all(torch.equal(found[key], before[key]) for key in fusion), "fusion layers are not BERT's"
    assert report.new == ("layers.2.", "layers.3.") and any("layers.2." in key for key in report.ignored)


def test_a_bert_that_is_too_small_is_refused():
    with pytest.raises(ValueError, match="BERT of 2 layers or more"):
        load_bert(TriBert(small_text()), bert_state(layers=1))
    with pytest.raises(ValueError, match="has 30 word pieces, this model 34 in front of its 6"):
        load_bert(TriBert(small_text()), bert_state(pieces=30))
