"""The prefix cache reuses text only under the very same pictures."""

from __future__ import annotations

import pytest
import torch

from mm.encoders.lavi import PrefixCache
from mm.encoders.lavi.prefix_cache import prefill

SHORT = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


def test_turns_are_continued_and_equal_fresh_runs(toolbox):
    lavi, ids = toolbox.lavi(), toolbox.ids(batch=1)
    visual = toolbox.encode(lavi, batch=1)
    cache = PrefixCache(lavi)
    first = cache.generate(ids, visual, **SHORT)
    assert torch.equal(first, lavi.generate(ids, visual=visual, **SHORT))
    assert cache.reused_tokens == 0

    follow_up = torch.cat([first, toolbox.ids(1, 3, seed=4)], 1)
    lengths = []
    lavi.backbone.layers[0].register_forward_pre_hook(lambda module, args: lengths.append(args[0].shape[1]))
    second = cache.generate(follow_up, visual, **SHORT)
    assert lengths[0] == 4, "all but the last answered token and the new words must come from the cache"
    assert cache.reused_tokens == follow_up.shape[1] - 4
    assert torch.equal(second, lavi.generate(follow_up, visual=visual, **SHORT))


def test_a_common_beginning_is_enough(toolbox):
    lavi = toolbox.lavi()
    visual = toolbox.encode(lavi)
    system = toolbox.ids(2, 6)
    questions = [torch.cat([system, toolbox.ids(2, 3, seed=s)], 1) for s in (7, 8)]
    cache = PrefixCache(lavi)
    for question in questions:
        assert torch.equal(cache.generate(question, visual, **SHORT), lavi.generate(question, visual=visual, **SHORT))
    assert cache.reused_tokens >= 2 * 6
    again = cache.generate(questions[0], visual, **SHORT)
    assert torch.equal(again, lavi.generate(questions[0], visual=visual, **SHORT)), "stored caches must not be changed"


def test_another_image_scale_or_weight_is_refused(toolbox):
    lavi, ids = toolbox.lavi(), toolbox.ids(batch=1)
    visual, other = toolbox.encode(lavi, batch=1), toolbox.encode(lavi, batch=1, seed=1)
    cache = PrefixCache(lavi)
    prefix = cache.store(ids, prefill(lavi, ids, visual), visual)
    longer = torch.cat([ids, toolbox.ids(1, 2, seed=5)], 1)
    assert cache.lookup(longer, visual) is prefix
    assert cache.lookup(longer, other) is None and cache.lookup(longer, None) is None
    with pytest.raises(ValueError, match="other pictures"):
        lavi.generate(longer, visual=other, prefix=prefix, **SHORT)
    with pytest.raises(ValueError, match="another text"):
        lavi.generate(toolbox.ids(1, 9, seed=6), visual=visual, prefix=prefix, **SHORT)

    lavi.delta_scale = 0.5
    assert cache.lookup(longer, visual) is None
    lavi.delta_scale = 1.0
    assert cache.lookup(longer, visual) is prefix
    next(lavi.cond.parameters()).add_(0.1)
    assert cache.lookup(longer, visual) is None


def test_appended_frames_need_a_new_prompt_run(toolbox):
    lavi, ids = toolbox.lavi(), toolbox.ids(batch=1)
    visual = toolbox.encode(lavi, batch=1)
    cache = PrefixCache(lavi)
    cache.generate(ids, visual, **SHORT)
    assert cache.lookup(ids, visual.append(visual)) is None


def test_capacity_drops_the_least_recently_used(toolbox):
    lavi = toolbox.lavi()
    visual = toolbox.encode(lavi, batch=1)
    cache = PrefixCache(lavi, capacity=2)
    prompts = [toolbox.ids(1, 5, seed=s) for s in (20, 21, 22)]
    for prompt in prompts[:2]:
        cache.store(prompt, prefill(lavi, prompt, visual), visual)
    assert cache.lookup(prompts[0], visual) is not None
    cache.store(prompts[2], prefill(lavi, prompts[2], visual), visual)
    assert len(cache) == 2
    assert cache.lookup(prompts[1], visual) is None and cache.lookup(prompts[0], visual) is not None
    cache.clear()
    assert len(cache) == 0


def test_sliding_windows_are_reused_whole_or_not_at_all(toolbox):
    lavi = toolbox.lavi("mistral")
    visual = toolbox.encode(lavi, batch=1)
    system = toolbox.ids(1, 10)
    cache = PrefixCache(lavi)
    for seed in (7, 8):
        question = torch.cat([system, toolbox.ids(1, 3, seed=seed)], 1)
        assert torch.equal(cache.generate(question, visual, **SHORT), lavi.generate(question, visual=visual, **SHORT))
    answer = torch.cat([cache.generate(system, visual, **SHORT), toolbox.ids(1, 2, seed=9)], 1)
    before = cache.reused_tokens
    assert torch.equal(cache.generate(answer, visual, **SHORT), lavi.generate(answer, visual=visual, **SHORT))
    assert cache.reused_tokens > before


def test_what_cannot_be_cached_is_refused(toolbox):
    lavi, ids = toolbox.lavi(), toolbox.ids()
    visual = toolbox.encode(lavi)
    cache = PrefixCache(lavi)
    mask = torch.ones_like(ids)
    mask[0, 0] = 0
    with pytest.raises(ValueError, match="without padding"):
        cache.generate(ids, visual, attention_mask=mask, **SHORT)
    with pytest.raises(ValueError, match="num_beams must be 1, got 2"):
        cache.generate(ids, visual, num_beams=2, **SHORT)
    with pytest.raises(ValueError, match="capacity"):
        PrefixCache(lavi, capacity=0)
