"""The adaptive conversation on transformers' own Qwen2.5-VL: against full recomputation, scripted models, bad input."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mm.pruning import FlowCut
from mm.pruning.visionthink import AdaptiveGenerator, token_grid
from mm.pruning.visionthink.packing import expand_images
from mm.pruning.visionthink.protocol import CALL_TEXT
from mm.pruning.visionthink.tiny import TINY_POLICY, TINY_PROTOCOL, tiny_processor, tiny_vlm
from mm.pruning.visionthink.tool_call import CLOSE, OPEN

QUESTION = "what colour is the ring ?"
CALL = f"{OPEN}\n{CALL_TEXT}\n{CLOSE}"


@pytest.fixture(scope="module")
def parts():
    processor = tiny_processor([QUESTION, "red green seven oops"])
    model = tiny_vlm(processor.tokenizer)
    with torch.no_grad():  # far from uniform, so that greedy decoding has clear winners
        for index, weight in enumerate(model.parameters()):
            if weight.ndim > 1:
                weight.copy_(0.2 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(index)))
    return model, processor


def picture(seed, width=32, height=32):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


PICTURES = [picture(0), picture(1, 48, 32), picture(2, 32, 64), picture(3, 40, 40)]


def generator(parts, **options):
    options = {"max_new_tokens": 6, "protocol": TINY_PROTOCOL, "policy": TINY_POLICY, **options}
    return AdaptiveGenerator(*parts, **options)


def scripted(gen, turns):
    """Let every conversation write given texts, turn by turn; anything beyond them is `red`."""
    ids = [[gen.tokenizer(text).input_ids for text in row] for row in turns]
    sequences = [[*row] for row in ids]
    state = {"rows": None, "at": None}
    write = gen._write

    def begin(session, logits, round_index, rows, source):
        alive = (
            list(range(len(turns)))
            if round_index == 0
            else [r for r in state["rows"] if len(sequences[r]) > round_index]
        )
        state["rows"], state["at"] = alive[:rows], [0] * rows
        state["round"] = round_index
        return write(session, logits, round_index, rows, source)

    def pick(logits, source):
        chosen = []
        for slot, row in enumerate(state["rows"]):
            script, at = sequences[row][state["round"]], state["at"][slot]
            chosen.append(script[at] if at < len(script) else gen.tokenizer.get_vocab()["red"])
            state["at"][slot] += 1
        return torch.tensor(chosen)

    gen._write, gen._pick = begin, pick
    return gen


def whole_sequence(parts, answer, images):
    """Ids of a finished conversation and the library's own inputs for one pass over all of it."""
    model, processor = parts
    trajectory = answer.trajectory
    tokens = SimpleNamespace(image=model.config.image_token_id, merge=2)
    ids = expand_images(trajectory.prompt, trajectory.grids, tokens)
    written = []  # (first, last) of every generated turn
    for turn in trajectory.turns:
        new = expand_images(turn.ids, turn.grids, tokens)
        if turn.generated:
            written.append((len(ids), len(ids) + len(new)))
        ids += new
    found = processor.image_processor(images=images, return_tensors="pt")
    ids = torch.tensor([ids])
    types = (ids == model.config.image_token_id).int()
    return written, {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": types, **found}


@pytest.mark.parametrize("mode", ["always", "auto"])
def test_both_turns_equal_one_pass_over_everything(parts, mode):
    """Continuing from the cache, in a batch of pictures of all sizes, is what the library computes from scratch."""
    model, _ = parts
    gen = generator(parts, mode=mode)
    for image, answer in zip(PICTURES, gen(PICTURES, [QUESTION] * 4), strict=True):
        assert answer.called == (mode == "always")
        low, full = TINY_POLICY.pair(image)
        written, inputs = whole_sequence(parts, answer, [low, full] if answer.called else [low])
        with torch.no_grad():
            logits = model(**inputs).logits[0].float().clone()
        logits[:, gen._barred] = -torch.inf
        first, last = written[-1]
        greedy = logits[first - 1 : last - 2].argmax(-1)  # the end marker may have been set by the limit
        assert torch.equal(greedy, inputs["input_ids"][0, first : last - 1])


def test_never_is_the_plain_model_on_the_small_picture(parts):
    model, processor = parts
    gen = generator(parts, mode="never")
    answer = gen(PICTURES[1], QUESTION)
    low, _ = TINY_POLICY.pair(PICTURES[1])
    _, inputs = whole_sequence(parts, answer, [low])
    prompt = len(expand_images(answer.trajectory.prompt, answer.trajectory.grids, gen.tokens))
    inputs = {
        **inputs,
        **{name: inputs[name][:, :prompt] for name in ("input_ids", "attention_mask", "mm_token_type_ids")},
    }
    barred = [*gen._barred, processor.tokenizer.get_vocab()[OPEN]]
    plain = model.generate(**inputs, max_new_tokens=6, do_sample=False, suppress_tokens=barred)[0, prompt:]
    assert processor.tokenizer.decode(plain, skip_special_tokens=True) == answer.turns[0]
    assert (answer.called, answer.attempted, answer.tokens_full, len(answer.turns)) == (False, False, 0, 1)


def test_a_call_costs_the_small_picture_and_the_full_one_and_recomputes_nothing(parts):
    answer = generator(parts, mode="always")(PICTURES[1], QUESTION)
    assert (answer.tokens_low, answer.tokens_full, answer.tokens_reference) == (6, 24, 24)
    assert answer.retain_ratio == pytest.approx(1.25)
    first, observation, second = answer.trajectory.turns
    expected = len(observation.ids) - 1 + 24 + len(second.ids)
    assert answer.computed == [len(answer.trajectory.prompt) - 1 + 6 + len(first.ids), expected]
    roles = [role for role, _ in answer.transcript]
    assert roles == ["user", "assistant", "user", "assistant"]


def test_the_second_picture_is_the_original_and_not_an_enlarged_thumbnail(parts):
    stripes = np.zeros((32, 32, 3), dtype=np.uint8)
    stripes[:, ::2] = 255  # gone at half the width
    grey = Image.fromarray(stripes).resize((16, 16), Image.Resampling.LANCZOS).resize((32, 32))
    gen = generator(parts, mode="always")
    seen = []
    see = gen.eye.see
    gen.eye.see = lambda images: seen.extend(images) or see(images)
    gen(Image.fromarray(stripes), QUESTION)
    assert [image.size for image in seen] == [(16, 16), (32, 32)]
    assert np.array_equal(np.asarray(seen[1]), stripes) and not np.array_equal(np.asarray(seen[1]), np.asarray(grey))


def test_scripted_models(parts):
    answered = "<think>red</think><answer>green</answer><|im_end|>"
    turns = [
        [answered],
        [CALL, answered],
        [f"{OPEN}oops{CLOSE}", answered],
        [CALL, CALL],
        ["red " * 60],
    ]
    gen = scripted(generator(parts, max_new_tokens=60), turns)
    images = [PICTURES[0]] * 5
    direct, asked, wrong, twice, endless = gen(images, [QUESTION] * 5)
    assert (direct.answer, direct.called, len(direct.turns)) == ("green", False, 1)
    assert (asked.answer, asked.called, asked.tokens_full, len(asked.turns)) == ("green", True, 16, 2)
    assert (wrong.answer, wrong.called, wrong.attempted, wrong.tokens_full) == ("green", False, True, 0)
    assert "no object found" in wrong.transcript[2][1]
    assert (twice.answer, twice.called, len(twice.turns), len(twice.transcript)) == ("", True, 2, 4)
    assert (endless.finished, len(endless.turns)) == (False, 1) and direct.finished and asked.finished
    assert endless.trajectory.turns[0].ids[-1] == gen.tokens.end


def test_bias_and_sampling(parts):
    eager = generator(parts, call_bias=1e4, max_new_tokens=1)(PICTURES[0], QUESTION)
    assert eager.turns[0].startswith(OPEN)
    drawn = generator(parts, temperature=1.0)
    first, again, other = (drawn(PICTURES, [QUESTION] * 4, seed=seed) for seed in (0, 0, 1))
    assert [a.turns for a in first] == [a.turns for a in again] != [a.turns for a in other]
    vision = {"<|image_pad|>", "<|vision_start|>"}
    assert not any(token in "".join(a.turns) for a in first for token in vision)


def test_a_pruner_can_give_the_first_look(parts):
    gen = generator(parts, first_look=FlowCut(target_tokens=5), mode="always")
    answer = gen(PICTURES[2], QUESTION)
    assert (answer.tokens_low, answer.tokens_full) == (5, 32)


def test_several_pictures_in_one_question(parts):
    answer = generator(parts, mode="always")([PICTURES[0], PICTURES[1]], QUESTION)
    assert (answer.tokens_low, answer.tokens_full) == (10, 40)


def test_the_floor_saves_nothing_and_runs(parts):
    answer = generator(parts, mode="always")(picture(5, 8, 8), QUESTION)
    assert (answer.tokens_low, answer.tokens_full) == (1, 1)
    assert token_grid(8, 8, min_pixels=64, factor=8).tokens == 1


def test_bad_input_is_named(parts):
    gen = generator(parts)
    with pytest.raises(ValueError, match="question 0 has no picture"):
        gen([], QUESTION)
    with pytest.raises(ValueError, match="2 questions, but pictures for 1"):
        gen([PICTURES[0]], [QUESTION] * 2)
    with pytest.raises(ValueError, match="unknown mode"):
        generator(parts, mode="sometimes")
    with pytest.raises(ValueError, match="unknown first_look"):
        generator(parts, first_look="third")
    fixed = nn.Module()
    fixed.model = nn.Linear(1, 1)
    with pytest.raises(ValueError, match="dynamic resolution"):
        AdaptiveGenerator(fixed, parts[1])


def test_the_model_is_left_as_it_was(parts):
    model, _ = parts
    model.train()
    generator(parts)(PICTURES[0], QUESTION)
    assert model.training
    model.eval()
