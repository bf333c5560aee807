"""Constrained generation: an untrained model writes programs, whatever its tokenizer."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mm.cad import parse
from mm.cad.decoding import ProgramConstraint, TokenTrie, complete_program
from mm.cad.examples import PLATE

SPECIAL = ["<s>", "</s>", "<unk>"]


def byte_level(texts):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=600, special_tokens=SPECIAL, initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def metaspace(texts):
    """Pieces that carry their space in front, like Llama 2's."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    letters = [chr(code) for code in range(33, 127)] + ["\n", "\t", "▁"]
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=500, special_tokens=SPECIAL, initial_alphabet=letters)
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.fixture(scope="module", params=[byte_level, metaspace])
def tokenizer(request, parts):
    return request.param([part.text for part in parts])


@pytest.fixture(scope="module")
def trie(tokenizer):
    return TokenTrie(tokenizer)


def untrained(tokenizer, seed):
    torch.manual_seed(seed)
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=1,
                         num_attention_heads=2, max_position_embeddings=2048, eos_token_id=tokenizer.eos_token_id,
                         pad_token_id=tokenizer.eos_token_id)  # fmt: skip
    return LlamaForCausalLM(config).eval()


def answers(tokenizer, trie, *, room, style="canonical", head="", tail="", **options):
    constraint = ProgramConstraint(tokenizer, style=style, head=head, tail=tail, max_new_tokens=room, trie=trie)
    prompt = torch.full((options.pop("rows", 2), 3), tokenizer.bos_token_id)
    model = untrained(tokenizer, options.pop("seed", 0))
    ids = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=room,
                         logits_processor=[constraint], pad_token_id=tokenizer.eos_token_id, **options)  # fmt: skip
    return [tokenizer.decode(row[3:], skip_special_tokens=True) for row in ids]


@pytest.mark.parametrize("style", ["official", "canonical"])
def test_an_untrained_model_writes_programs(tokenizer, trie, style):
    """Sampled and by beams; the room always suffices."""
    found = answers(tokenizer, trie, room=480, style=style, do_sample=True, rows=1)
    if style == "canonical":
        found += answers(tokenizer, trie, room=420, style=style, num_beams=2, do_sample=False, rows=1)
    for text in found:
        assert parse(text).extrudes, text


def test_without_the_constraint_it_does_not(tokenizer):
    """The control: the same model without the processor."""
    model, prompt = untrained(tokenizer, 0), torch.full((2, 3), tokenizer.bos_token_id)
    ids = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=200, do_sample=True,
                         pad_token_id=tokenizer.eos_token_id)  # fmt: skip
    assert all(complete_program(tokenizer.decode(row[3:])) is None for row in ids)


def test_head_and_tail(tokenizer, trie):
    for text in answers(tokenizer, trie, room=500, rows=1, head="Here:\n```\n", tail="```", do_sample=True):
        assert text.lstrip().startswith("Here:\n```\n") and text.endswith("```")
        assert parse(text).extrudes


def test_allowed_tokens_are_those_that_stay_in_the_language(tokenizer, trie):
    """Against the plain definition: try every token."""
    from mm.cad.grammar import Grammar

    for cut in (0, 20, 60, 90, 150, 230, 300, len(PLATE)):
        state = Grammar().start().advance(PLATE[:cut])
        plain = {t for t, text in enumerate(trie.texts) if text and state.advance(text) is not None}
        assert set(trie.allowed(state)) == plain


def test_the_right_tokens_pass(tokenizer, trie):
    """Every step of a real program is among the allowed tokens; the end is allowed at its end only."""
    constraint = ProgramConstraint(tokenizer, trie=trie)
    answer: tuple[int, ...] = ()
    rest = PLATE
    while rest:
        token = trie.along(rest)[-1]
        allowed = constraint.next_tokens(answer)
        assert token in allowed and (constraint.eos in allowed) == (not answer and False)
        answer, rest = (*answer, token), rest[len(trie.texts[token]) :]
    assert constraint.eos in constraint.next_tokens(answer)
    assert constraint.next_tokens((*answer, constraint.eos)) == [constraint.eos]


def test_too_little_room(tokenizer, trie):
    with pytest.raises(ValueError, match="room for 50"):
        ProgramConstraint(tokenizer, max_new_tokens=50, trie=trie)


def test_tokenizers_that_cannot_write_programs(tokenizer):
    words = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "</s>": 1, "<unk>": 2}, unk_token="<unk>")),
        eos_token="</s>", unk_token="<unk>",
    )  # fmt: skip
    with pytest.raises(ValueError, match="no single token for"):
        ProgramConstraint(words)


def test_complete_program():
    assert complete_program(PLATE) == parse(PLATE)
    assert complete_program(PLATE + "SketchPlane1 = add_") == parse(PLATE)
    assert complete_program(PLATE[:100]) is None
    assert complete_program("I see no part.") is None
