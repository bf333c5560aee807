"""Generation with pictures: beams, sampling, padding, guidance, delta scale."""

from __future__ import annotations

import pytest
import torch
from transformers import GenerationConfig, set_seed

from mm.encoders.lavi.generation import VisualGuidance

SHORT = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


def greedy_by_hand(lavi, ids, visual, steps=6):
    for _ in range(steps):
        ids = torch.cat([ids, lavi(ids, visual=visual).logits[:, -1:].argmax(-1)], dim=1)
    return ids


@pytest.mark.parametrize("family", ["llama", "qwen2", "opt", "gemma"])
def test_generate_equals_decoding_without_a_cache(toolbox, family):
    lavi, ids = toolbox.lavi(family), toolbox.ids()
    visual = toolbox.encode(lavi)
    seen = lavi.generate(ids, visual=visual, **SHORT)
    assert torch.equal(seen, greedy_by_hand(lavi, ids, visual))
    assert not torch.equal(seen, lavi.generate(ids, **SHORT)), "the pictures changed nothing"


@pytest.mark.parametrize("conditioner", ["attention", "mlp", "conv", "film"])
def test_beams_and_returned_sequences_equal_repeated_input(toolbox, conditioner):
    lavi, ids = toolbox.lavi(conditioner=conditioner), toolbox.ids()
    visual = toolbox.encode(lavi)
    beams = lavi.generate(ids, visual=visual, num_beams=3, num_return_sequences=3, **SHORT)
    with lavi.seeing(visual.expand(3)):  # as many rows as beams, so nothing is shared
        repeated = lavi.language_model.generate(ids, num_beams=3, num_return_sequences=3, **SHORT)
    assert torch.equal(beams, repeated)

    sampling = {**SHORT, "do_sample": True}
    set_seed(0)
    several = lavi.generate(ids, visual=visual, num_return_sequences=3, **sampling)
    set_seed(0)
    alone = lavi.generate(ids.repeat_interleave(3, 0), visual=visual.expand(3), **sampling)
    assert torch.equal(several, alone)


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_left_padding_does_not_change_answers(toolbox, family):
    lavi = toolbox.lavi(family)
    visual = toolbox.encode(lavi)
    short, long = toolbox.ids(1, 4, seed=1), toolbox.ids(1, 7, seed=2)
    ids = torch.cat([torch.cat([torch.zeros(1, 3, dtype=torch.long), short], 1), long])
    both = lavi.generate(ids, attention_mask=(ids != 0).long(), visual=visual, **SHORT)
    assert torch.equal(both[0, 7:], lavi.generate(short, visual=visual.index([0]), **SHORT)[0, 4:])
    assert torch.equal(both[1, 7:], lavi.generate(long, visual=visual.index([1]), **SHORT)[0, 7:])


def test_placed_images_work_with_padding_and_beams(toolbox):
    lavi = toolbox.lavi()
    image_ids = torch.arange(16).div(8, rounding_mode="floor").expand(2, 16)
    visual = toolbox.encode(lavi, image_ids=image_ids).placed(torch.tensor([[1, 3], [2, 6]]))
    short, long = toolbox.ids(1, 4, seed=1), toolbox.ids(1, 7, seed=2)
    ids = torch.cat([torch.cat([torch.zeros(1, 3, dtype=torch.long), short], 1), long])
    for beams in (1, 3):
        both = lavi.generate(ids, attention_mask=(ids != 0).long(), visual=visual, num_beams=beams, **SHORT)
        for row, prompt in enumerate((short, long)):
            alone = lavi.generate(prompt, visual=visual.index([row]), num_beams=beams, **SHORT)
            assert torch.equal(both[row, 7:], alone[0, prompt.shape[1] :])


def test_first_token_can_be_left_alone(toolbox):
    lavi, ids = toolbox.lavi(modulate_first_token=False), toolbox.ids()
    full = toolbox.lavi()
    visual = toolbox.encode(lavi)
    logits, plain = lavi(ids, visual=visual).logits, lavi(ids).logits
    assert torch.equal(logits[:, 0], plain[:, 0])
    assert not torch.allclose(logits[:, 1], plain[:, 1], atol=1e-3)
    assert not torch.allclose(logits[:, 1], full(ids, visual=visual).logits[:, 1], atol=1e-3)
    padded = torch.cat([torch.zeros(2, 2, dtype=torch.long), ids], 1)
    mask = (padded != 0).long()
    seen = lavi(padded, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp_min(0), visual=visual).logits
    torch.testing.assert_close(seen[:, 2:], logits, rtol=1e-5, atol=2e-5)
    assert torch.equal(lavi.generate(ids, visual=visual, **SHORT), greedy_by_hand(lavi, ids, visual))


def test_delta_scale_fades_between_plain_and_full(toolbox):
    lavi, ids = toolbox.lavi(), toolbox.ids()
    visual = toolbox.encode(lavi)
    plain, full = lavi(ids).logits, lavi(ids, visual=visual).logits
    lavi.delta_scale = 0.5
    half = lavi(ids, visual=visual).logits
    assert not torch.allclose(half, plain, atol=1e-3) and not torch.allclose(half, full, atol=1e-3)
    lavi.delta_scale = 1e-4
    torch.testing.assert_close(lavi(ids, visual=visual).logits, plain, rtol=0, atol=5e-3)
    configured = toolbox.lavi(delta_scale=0.5)
    assert torch.equal(configured(ids, visual=visual).logits, half)


# --- guidance ---------------------------------------------------------------------------------------------------


def count_passes(lavi):
    passes = []
    lavi.backbone.decoder.register_forward_pre_hook(lambda *_: passes.append(1))
    return passes


def test_guidance_of_one_is_a_single_pass(toolbox):
    lavi, ids = toolbox.lavi(), toolbox.ids()
    visual = toolbox.encode(lavi)
    expected = lavi.generate(ids, visual=visual, **SHORT)
    passes = count_passes(lavi)
    assert torch.equal(lavi.generate(ids, visual=visual, guidance=1.0, **SHORT), expected)
    assert len(passes) == 6
    passes.clear()
    lavi.generate(ids, visual=visual, guidance=1.5, **SHORT)
    assert len(passes) == 12


def test_guided_logits_follow_the_formula(toolbox):
    lavi, ids = toolbox.lavi(), toolbox.ids()
    visual = toolbox.encode(lavi)
    plain, seeing = lavi(ids).logits, lavi(ids, visual=visual).logits
    guided = lavi(ids, visual=visual, guidance=2.5)
    torch.testing.assert_close(guided.logits, plain + 2.5 * (seeing - plain))
    torch.testing.assert_close(lavi(ids, visual=visual, guidance=0.0).logits, plain)
    with pytest.raises(ValueError, match="neither a cache nor labels"):
        lavi(ids, visual=visual, guidance=2.0, labels=ids)


@pytest.mark.parametrize("beams", [1, 2])
def test_guided_generation_equals_guidance_by_hand(toolbox, beams):
    lavi = toolbox.lavi()
    visual = toolbox.encode(lavi)
    short, long = toolbox.ids(1, 4, seed=1), toolbox.ids(1, 7, seed=2)
    ids = torch.cat([torch.cat([torch.zeros(1, 3, dtype=torch.long), short], 1), long])
    answers = lavi.generate(
        ids, attention_mask=(ids != 0).long(), visual=visual, guidance=3.0, num_beams=beams, **SHORT
    )
    for row, prompt in enumerate((short, long)):
        alone = lavi.generate(prompt, visual=visual.index([row]), guidance=3.0, num_beams=beams, **SHORT)
        assert torch.equal(answers[row, 7:], alone[0, prompt.shape[1] :])
        if beams == 1:
            hand = prompt
            for _ in range(6):
                logits = lavi(hand, visual=visual.index([row]), guidance=3.0).logits
                hand = torch.cat([hand, logits[:, -1:].argmax(-1)], 1)
            assert torch.equal(alone, hand)
    assert not torch.equal(answers, lavi.generate(ids, attention_mask=(ids != 0).long(), visual=visual, **SHORT))


def test_guidance_keeps_forbidden_tokens_forbidden_and_reads_the_config(toolbox):
    scores = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    scores[:, 5] = -torch.inf
    for strength in (0.0, 0.5, 3.0):
        guided = VisualGuidance(toolbox.lavi(), strength, None, beams=False)(toolbox.ids(), scores)
        assert (guided[:, 5] == -torch.inf).all() and guided.isfinite().sum() == 2 * 63
    lavi, ids = toolbox.lavi(guidance=0.0), toolbox.ids()
    visual = toolbox.encode(lavi)
    assert torch.equal(lavi.generate(ids, visual=visual, **SHORT), lavi.generate(ids, **SHORT))
    favourite = int(lavi.generate(ids, visual=visual, **SHORT)[0, 7])
    banned = lavi.generate(ids, visual=visual, bad_words_ids=[[favourite]], **SHORT)
    assert favourite not in banned[:, 7:]


def test_generation_config_objects_are_understood(toolbox):
    lavi, ids = toolbox.lavi(), toolbox.ids()
    visual = toolbox.encode(lavi)
    config = GenerationConfig(num_beams=2, **SHORT)
    expected = lavi.generate(ids, visual=visual, guidance=2.0, num_beams=2, **SHORT)
    assert torch.equal(lavi.generate(ids, visual=visual, guidance=2.0, generation_config=config), expected)


def test_wrong_calls_are_refused(toolbox):
    lavi = toolbox.lavi()
    visual = toolbox.encode(lavi)
    with pytest.raises(ValueError, match="2 rows, the text batch 3"):
        lavi.generate(toolbox.ids(batch=3), visual=visual, **SHORT)
    with pytest.raises(ValueError, match="at least one token"):
        lavi.generate(torch.zeros(2, 0, dtype=torch.long), visual=visual, **SHORT)
