"""What the mask, the layers and the tokens of TriBERT must and must not do."""

from __future__ import annotations

import pytest
import torch

from mm.medical import TriBert
from mm.medical.velvet.config import TextConfig, VelvetConfig
from mm.medical.velvet.convert import load_bert
from mm.medical.velvet.pooling import pool_levels
from mm.medical.velvet.tokenizer import SentenceTokenizer
from tests.medical.velvet.conftest import small_text


@pytest.fixture
def text():
    torch.manual_seed(0)
    return TriBert(small_text()).eval()


IDS = torch.tensor([[2, 34, 10, 11, 35, 12, 13, 14]])
TYPES = torch.tensor([[1, 1, 1, 1, 2, 2, 2, 2]])
REAL = torch.ones(1, 8, dtype=torch.bool)


def test_a_word_of_another_sentence_reaches_words_but_not_the_sentence_token(text):
    changed = IDS.clone()
    changed[0, 6] = 20
    one, other = text(IDS, TYPES, REAL), text(changed, TYPES, REAL)
    assert torch.equal(one[1][0, 1], other[1][0, 1]), "[SEN_1] sees a word of sentence 2 in the first layer"
    assert not torch.allclose(one[1][0, 2], other[1][0, 2]), "a word does not see the other sentence"
    assert not torch.allclose(one[1][0, 4], other[1][0, 4]), "[SEN_2] does not see its own word"


def test_fusion_layers_look_both_ways(text):
    changed = IDS.clone()
    changed[0, -1] = 20
    visible, memory = text.visible(IDS, TYPES, REAL), torch.randn(1, 3, 16)
    states = text(IDS, TYPES, REAL)[-1]
    later = states.clone()
    later[0, -1] += 1
    one, other = text.fuse(states, visible, memory), text.fuse(later, visible, memory)
    assert not torch.allclose(one[0, 2], other[0, 2])


def test_the_volume_changes_fusion_layers_only(text):
    memory = torch.randn(1, 3, 16)
    with_volume, without = text(IDS, TYPES, REAL, memory=memory, layers="all"), text(IDS, TYPES, REAL, layers="all")
    for number in range(3):
        assert torch.equal(with_volume[number], without[number])
    assert not torch.allclose(with_volume[3], without[3])


def test_padding_changes_nothing(text):
    def padded(row, length, value=0):
        return torch.nn.functional.pad(row, (0, length - row.shape[1]), value=value)

    memory = torch.randn(1, 3, 16)
    short = text(IDS, TYPES, REAL, memory=memory, layers="all")[-1]
    for length in (16, 64):
        rows = padded(IDS, length), padded(TYPES, length), padded(REAL, length, False)
        long = text(*rows, memory=memory, layers="all")[-1]
        torch.testing.assert_close(long[:, :8], short, rtol=1e-5, atol=1e-5)


def test_without_sentence_modelling_it_is_a_plain_bert():
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = small_text(layers=3, fusion_layers=0, max_sentences=2, sentence_modeling=False)
    bert = BertModel(
        BertConfig(
            vocab_size=config.first_sentence_id,
            hidden_size=config.width,
            intermediate_size=config.feed_forward,
            num_hidden_layers=config.layers,
            num_attention_heads=config.num_heads,
            max_position_embeddings=config.max_tokens,
            type_vocab_size=2,
        ),
        add_pooling_layer=False,
    ).eval()
    text = TriBert(config).eval()
    report = load_bert(text, bert.state_dict())
    assert report.loaded and not report.new
    ids = torch.randint(5, 38, (2, 9), generator=torch.Generator().manual_seed(0))
    real = torch.arange(9) < torch.tensor([[9], [6]])
    types = real.long()  # our type 1 is BERT's type 0
    ours = text(ids, types, real)
    with torch.no_grad():
        theirs = bert(ids, attention_mask=real.long(), output_hidden_states=True).hidden_states
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a[real], b[real], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("layers", "fusion", "millions"), [(12, 0, 108.97), (12, 6, 165.68)])
def test_published_sizes(layers, fusion, millions):
    with torch.device("meta"):
        text = TriBert(TextConfig(layers=layers, fusion_layers=fusion))
    assert sum(p.numel() for p in text.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)


def test_hand_counted_units(small_tokenizer):
    """left cyst##s . | liver normal -> units CLS SEN left cysts . SEN liver normal"""
    batch = small_tokenizer([["left cysts.", "liver normal"], ["cyst"]], length=12)
    config = small_tokenizer.text_config(small_text())
    states = torch.arange(1.0, 13.0)[None, :, None].repeat(2, 1, 1)  # token j holds j + 1
    units = pool_levels(states, *batch.to_dict().values(), config)
    assert units.report[:, 0].tolist() == [1.0, 1.0]
    assert units.word[0][units.word_keep[0]][:, 0].tolist() == [3, 4 + 5, 6, 8, 9]
    # sentence 1: SEN 2, left 3, cyst##s 4 + 5, mark 6; sentence 2: SEN 7, liver 8, normal 9
    assert units.sentence[0, :2, 0].tolist() == [(2 + 3 + 9 + 6) / 4, (7 + 8 + 9) / 3]
    assert units.sentence_keep.tolist() == [[True, True] + [False] * 4, [True] + [False] * 5]
    token = pool_levels(states, *batch.to_dict().values(), config, sentence_vector="token")
    assert token.sentence[0, :2, 0].tolist() == [2, 7]


def test_units_of_a_report_that_fills_all_places(small_tokenizer):
    batch = small_tokenizer([["left cysts.", "liver normal"]])
    assert batch.attention_mask.all()
    states = torch.arange(1.0, 10.0)[None, :, None]
    units = pool_levels(states, *batch.to_dict().values(), small_tokenizer.text_config(small_text()))
    assert units.word[0][units.word_keep[0]][:, 0].tolist() == [3, 9, 6, 8, 9], "the last word is lost"


def test_units_without_any_sentence_token():
    config = small_text()
    ids = torch.tensor([[2, 10, 11, 3, 0]])
    real = ids != 0
    units = pool_levels(torch.ones(1, 5, 2), ids, real.long(), real, real, config)
    assert not units.sentence_keep.any() and units.sentence.isfinite().all()
    assert units.word_keep.tolist() == [[False, True, True, False, False]], "[SEP] is no word"


# --- tokenizer -------------------------------------------------------------------------------------------------------


def test_a_report_without_sentence_is_refused_by_number(small_tokenizer):
    with pytest.raises(ValueError, match="report 1: the report holds no sentence"):
        small_tokenizer(["No cyst.", " \n "])


def test_surplus_sentences(small_tokenizer, caplog):
    sentences = [f"{word}." for word in ("no", "cyst", "liver", "kidney", "left", "right", "large", "normal")]
    ids, types = small_tokenizer.encode(sentences)
    assert max(types) == 6 and "keeps its first 6" in caplog.text
    assert ids[2] == small_tokenizer.ids["no"]
    draws = set()
    for seed in range(20):
        ids, types = small_tokenizer.encode(sentences, generator=torch.Generator().manual_seed(seed))
        words = [small_tokenizer.piece(i) for i in ids if i < 19 and i > 5 and small_tokenizer.piece(i) != "."]
        assert types == sorted(types) and max(types) == 6
        assert [f"{word}." for word in words] == sorted((f"{w}." for w in words), key=sentences.index), "order changed"
        draws.add(tuple(words))
    assert len(draws) > 5, "the same sentences are dropped every time"


def test_builder_needs_no_file_and_repeats_itself(tmp_path):
    reports = ["The liver is normal.", "Two cysts in the left kidney.", "A cyst of the liver."] * 5
    one, two = (SentenceTokenizer.build(texts, size=80, max_sentences=4) for texts in (reports, reports[::-1]))
    assert one.vocabulary == two.vocabulary and len(one.vocabulary) <= 80
    batch = one(["The liver is normal. A cyst."])
    assert one.unk_id not in batch.input_ids
    assert one.decode(batch.input_ids[0]) == "the liver is normal . a cyst ."
    again = SentenceTokenizer.from_file(one.save(tmp_path), max_sentences=4)
    assert again.vocabulary == one.vocabulary


def test_a_vocabulary_that_does_not_fit_is_named(small_tokenizer):
    with pytest.raises(ValueError, match="the vocabulary has"):
        SentenceTokenizer.for_config(small_tokenizer.vocabulary, small_text())
    with pytest.raises(ValueError, match=r"lacks \[MASK\]"):
        SentenceTokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    with pytest.raises(ValueError, match="twice"):
        SentenceTokenizer([*small_tokenizer.vocabulary, "cyst"])


def test_text_longer_than_the_positions_is_refused(text):
    ids = torch.full((1, 65), 10)
    with pytest.raises(ValueError, match="65 tokens, this model has 64"):
        text(ids, torch.ones_like(ids), torch.ones_like(ids))


def test_sentence_level_without_sentence_tokens_is_refused():
    with pytest.raises(ValueError, match="sentence level needs"):
        VelvetConfig(text=TextConfig(sentence_modeling=False))
