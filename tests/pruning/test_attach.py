"""FlowCut around whole vision-language models that nobody here wrote."""

from __future__ import annotations

import pytest
import torch

from mm.pruning import FlowCut

VLMS = ("llava", "llava-qwen3", "llava-mistral", "next", "onevision", "qwen2", "qwen2.5")
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
ENCODER_ONLY = {"second_stage": "off"}


def snapshot(model):
    """Everything a pruner could leave behind."""
    return [(name, type(module), sorted(vars(module)), _hooks(module)) for name, module in model.named_modules()], {
        name: value.clone() for name, value in model.state_dict().items()
    }


def _hooks(module):
    names = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")
    return [len(getattr(module, name)) for name in names]


def same(first, second):
    assert first[0] == second[0]
    assert all(torch.equal(value, second[1][name]) for name, value in first[1].items())


@torch.no_grad()
@pytest.mark.parametrize("name", VLMS)
def test_generate_with_fewer_tokens(tiny, name):
    model, inputs = tiny.vlm(name), tiny.inputs(name)
    before = snapshot(model)
    with FlowCut(target_tokens=4).attach(model) as session:
        out = model.generate(**inputs, max_new_tokens=3, do_sample=False)
        lengths = [(full, left) for full, left in session.visual_tokens]
    assert out.shape[1] <= inputs["input_ids"].shape[1] + 3
    assert torch.equal(out[:, : inputs["input_ids"].shape[1]], inputs["input_ids"])
    assert [full for full, _ in lengths] == (inputs["input_ids"] == tiny.image).sum(1).tolist()
    assert all(left < full for full, left in lengths)
    same(before, snapshot(model))


@torch.no_grad()
@pytest.mark.parametrize("name", VLMS)
def test_a_large_target_is_the_unpruned_model(tiny, name):
    model, inputs = tiny.vlm(name), tiny.inputs(name)
    expected = model(**inputs).logits
    with FlowCut(target_tokens=10_000).attach(model):
        found = model(**inputs).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("name", ["llava", "qwen2", "qwen2.5"])
def test_equals_a_prompt_with_hidden_keys(tiny, name):
    """Dropping placeholders equals running the full prompt with those keys masked, positions kept (M-RoPE)."""
    model, inputs = tiny.vlm(name), tiny.inputs(name, batch=1)
    pruner = FlowCut(target_tokens=7, **ENCODER_ONLY)
    with pruner.attach(model) as session:
        found = model(**inputs).logits[0, -1]
        kept = session.pruned[0].keep_indices[0]
    if name == "llava":
        features = model.model.multi_modal_projector(session.pruned[0].tokens)[0]
    else:
        features = session.pruned[0].tokens[0]
    ids = inputs["input_ids"]
    embedded = model.get_input_embeddings()(ids)
    image = (ids[0] == tiny.image).nonzero()[:, 0]
    embedded[0, image[kept]] = features
    visible = torch.ones_like(ids)
    visible[0, image] = 0
    visible[0, image[kept]] = 1
    if name == "llava":  # positions are counted anew
        positions = (visible.cumsum(1) - 1).clamp(min=0)
    else:
        positions, _ = model.model.get_rope_index(
            ids, mm_token_type_ids=inputs["mm_token_type_ids"], image_grid_thw=inputs["image_grid_thw"]
        )
    out = model.model.language_model(inputs_embeds=embedded, attention_mask=visible, position_ids=positions)
    expected = model.lm_head(out.last_hidden_state)[0, -1]
    torch.testing.assert_close(found, expected, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("name", VLMS)
@pytest.mark.parametrize("stage", ["off", "on"])
def test_batch_and_padding_side_change_nothing(tiny, name, stage):
    model = tiny.vlm(name)
    left, right = tiny.inputs(name, pad="left"), tiny.inputs(name, pad="right")
    alone = tiny.inputs(name, batch=1)
    pruner = FlowCut(target_tokens=6, second_stage=stage)
    with pruner.attach(model):
        from_left = model(**left).logits
        from_right = model(**right).logits
        from_alone = model(**alone).logits[0, -1]
    last_right = _last_real(tiny, model, pruner, right)
    torch.testing.assert_close(from_left[0, -1], from_alone, **CLOSE)
    for row in range(2):
        torch.testing.assert_close(from_left[row, -1], from_right[row, last_right[row]], **CLOSE)


def _last_real(tiny, model, pruner, inputs):
    """Column of the last real token of right-padded rows behind all cuts: pads stay at the end."""
    pads = (inputs["attention_mask"] == 0).sum(1)
    return [-1 - int(pad) for pad in pads]


@torch.no_grad()
def test_several_pictures_in_one_prompt(tiny):
    model = tiny.vlm("llava")
    inputs = {**tiny.prompts([[64, 64], [64]]), "pixel_values": tiny.pictures(3, 32)}
    with FlowCut(target_tokens=5, second_stage="on").attach(model) as session:
        out = model(**inputs).logits
        assert session.visual_tokens == [(64, 10)] * 3
        assert session.language.visual_per_block() == [30, 30, 15, 15, 15]
        second = model(
            **{**tiny.prompts([[64, 64]]), "pixel_values": inputs["pixel_values"][:2]}
        ).logits  # the first prompt alone
    torch.testing.assert_close(out[0, -1], second[0, -1], **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("name", VLMS)
@pytest.mark.parametrize("stage", ["off", "on"])
def test_cached_decoding_equals_one_pass(tiny, name, stage):
    """Greedy tokens step by step, against one pass without a cache in which the same tokens were dropped."""
    model, inputs = tiny.vlm(name), tiny.inputs(name)
    pruner = FlowCut(target_tokens=6, second_stage=stage)
    with pruner.attach(model) as session:
        out = model.generate(
            **inputs, max_new_tokens=4, do_sample=False, return_dict_in_generate=True, output_logits=True
        )
        frozen = [behind.selection.keep for behind in session.language.last.behind] if session.language else []
    answer = out.sequences[:, inputs["input_ids"].shape[1] :]
    longer = dict(inputs)
    longer["input_ids"] = torch.cat([inputs["input_ids"], answer[:, :-1]], dim=1)
    new = torch.ones_like(answer[:, :-1])
    longer["attention_mask"] = torch.cat([inputs["attention_mask"], new], dim=1)
    if "mm_token_type_ids" in inputs:
        longer["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], 0 * new], dim=1)
    with pruner.attach(model) as session:
        if session.language:  # the last token has changed, so the selection must be frozen
            keeps = [torch.cat([keep, new.bool()], dim=1) for keep in frozen]
            object.__setattr__(session.language, "stage", Frozen(session.language.stage, keeps))
        full = model(**longer, use_cache=False).logits
    for step in range(4):
        torch.testing.assert_close(out.logits[step], full[:, step - 4], **CLOSE)
    if stage == "on":
        lengths = [layer.keys.shape[2] for layer in out.past_key_values.layers]
        assert lengths[0] == lengths[1] > lengths[2] == lengths[4]


class Frozen:
    """A language stage that repeats recorded selections."""

    def __init__(self, stage, keeps):
        self.stage, self.keeps = stage, keeps

    def begin(self, prompt, embedded):
        return prompt

    def select(self, cut, block, prompt, first):
        from mm.pruning.llm_stage import Selection

        return Selection(self.keeps[cut.number])


@torch.no_grad()
def test_beams_and_several_answers(tiny):
    model, inputs = tiny.vlm("llava"), tiny.inputs("llava")
    with FlowCut(target_tokens=6, second_stage="on").attach(model):
        beams = model.generate(**inputs, max_new_tokens=3, num_beams=3, do_sample=False, num_return_sequences=2)
    assert beams.shape[0] == 4 and torch.equal(beams[2, : inputs["input_ids"].shape[1]], inputs["input_ids"][1])


@torch.no_grad()
def test_second_stage_equals_eager_attention(tiny):
    sdpa, eager = tiny.llava(), tiny.llava()
    eager.set_attn_implementation("eager")
    inputs = tiny.inputs("llava")
    logits = []
    for model in (sdpa, eager):
        with FlowCut(target_tokens=6, second_stage="on").attach(model):
            logits.append(model(**inputs).logits[:, 1:])  # the first column is padding in one row
    torch.testing.assert_close(*logits, **CLOSE)


def test_labels_leave_with_their_tokens(tiny):
    model, inputs = tiny.vlm("llava"), tiny.inputs("llava", pad="right")
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    labels[labels == tiny.image] = -100
    labels[:, :-3] = -100
    for stage in ("off", "on"):
        with FlowCut(target_tokens=6, second_stage=stage).attach(model):
            out = model(**inputs, labels=labels)
            logits = out.logits.float()
        # the last three columns are text in every row: the same labels stand there
        expected = torch.nn.functional.cross_entropy(
            logits[:, -4:-1].flatten(0, 1), labels[:, -3:].flatten(), ignore_index=-100
        )
        torch.testing.assert_close(out.loss, expected)


def test_training_reads_the_instruction_not_the_answer(tiny):
    """With labels the guide is the last token before the answer, so the answer's words cannot choose the tokens."""
    model, inputs = tiny.vlm("llava"), tiny.inputs("llava", batch=1)
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[:, -2:] = inputs["input_ids"][:, -2:]
    keeps = []
    for last in (5, 6):
        changed = {**inputs, "input_ids": inputs["input_ids"].clone()}
        changed["input_ids"][:, -1] = last
        with FlowCut(target_tokens=6, second_stage="on").attach(model) as session, torch.no_grad():
            model(**changed, labels=labels)
            keeps.append(session.language.last.behind[0].selection.keep)
            assert int(session.language.last.first.question[0]) == keeps[-1].shape[1] - 3
    assert torch.equal(*keeps)


@torch.no_grad()
def test_class_token_counts_when_the_model_reads_it(tiny):
    model = tiny.llava(vision_feature_select_strategy="full")
    inputs = {**tiny.prompts([[65], [65]]), "pixel_values": tiny.pictures(2, 32)}
    expected = model(**inputs).logits
    with FlowCut(target_tokens=65).attach(model):
        torch.testing.assert_close(model(**inputs).logits, expected, rtol=0, atol=0)
    with FlowCut(target_tokens=8).attach(model) as session:
        model(**inputs)
        assert session.visual_tokens == [(65, 8)] * 2
        assert session.pruned[0].tokens.shape[1] == 7


@torch.no_grad()
def test_next_views_packing_and_stage_sizes(tiny):
    """Published code: every view keeps T / 2, then the language model T; paper: 2 T shared over the views."""
    model, inputs = tiny.vlm("next"), tiny.inputs("next", batch=1)
    for stage1, per_view in (("code", [6] * 5), ("paper", [5, 5, 5, 5, 4])):
        with FlowCut(target_tokens=12, stage1=stage1).attach(model) as session:
            model(**inputs)
            assert session.pruned[0].tokens_per_layer[:, -1].tolist() == per_view
            assert session.visual_tokens[0][1] <= sum(per_view)
            assert session.language.visual_per_block()[2] == 12


@torch.no_grad()
def test_model_is_restored_after_an_error(tiny):
    model = tiny.llava()
    before = snapshot(model)
    with pytest.raises(RuntimeError, match="in the middle"):
        with FlowCut(target_tokens=6, second_stage="on").attach(model):
            raise RuntimeError("in the middle")
    same(before, snapshot(model))
    inputs = tiny.inputs("llava")
    inputs["input_ids"][0, inputs["input_ids"][0] == tiny.image] = 7
    with pytest.raises(ValueError, match=r"placeholders|room"):
        with FlowCut(target_tokens=6).attach(model):
            model.generate(**inputs, max_new_tokens=1)
    same(before, snapshot(model))


@torch.no_grad()
def test_rope_memory_of_qwen_is_restored(tiny):
    model, inputs = tiny.vlm("qwen2.5"), tiny.inputs("qwen2.5")
    model.model.rope_deltas = marker = torch.tensor([[3], [4]])
    with FlowCut(target_tokens=6).attach(model):
        model.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert model.model.rope_deltas is marker
    model.model.rope_deltas = None


def test_methods_do_not_nest(tiny):
    model = tiny.llava()
    with FlowCut(target_tokens=6).attach(model):
        with pytest.raises(ValueError, match="already pruned by FlowCut; leave its `with` block"):
            with FlowCut(target_tokens=3).attach(model):
                pass
    with FlowCut(target_tokens=6).attach(model):
        pass


def test_a_shared_tower_is_pruned_once(tiny):
    first, second = tiny.llava(), tiny.llava()
    second.model.vision_tower = first.model.vision_tower
    with FlowCut(target_tokens=6).attach(first):
        with pytest.raises(ValueError, match="CLIPVisionModel is already pruned"):
            with FlowCut(target_tokens=6).attach(second):
                pass


@torch.no_grad()
def test_what_cannot_be_pruned(tiny):
    with pytest.raises(ValueError, match="Linear is no vision-language model that can be pruned"):
        with FlowCut().attach(torch.nn.Linear(2, 2)):
            pass
    with pytest.raises(ValueError, match="clip_vision_model"):
        with FlowCut().attach(tiny.clip()):
            pass
    model = tiny.llava(vision_feature_layer=[-2, -1])
    with FlowCut(target_tokens=6).attach(model):
        with pytest.raises(ValueError, match="pruning reads one layer"):
            model(**tiny.inputs("llava"))
    inputs = tiny.inputs("qwen2.5")
    del inputs["mm_token_type_ids"]
    with FlowCut(target_tokens=6).attach(tiny.vlm("qwen2.5")):
        with pytest.raises(ValueError, match="needs mm_token_type_ids"):
            tiny.vlm("qwen2.5").generate(**inputs, max_new_tokens=1)


@torch.no_grad()
def test_text_only_calls_pass_through(tiny):
    model = tiny.vlm("llava")
    ids = torch.tensor([[1, 5, 6, 7]])
    expected = model(input_ids=ids).logits
    with FlowCut(target_tokens=6, second_stage="on").attach(model):
        torch.testing.assert_close(model(input_ids=ids).logits, expected, rtol=0, atol=0)
        model.generate(input_ids=ids, max_new_tokens=2)


@torch.no_grad()
@pytest.mark.parametrize("name", ["llava", "qwen2.5"])
def test_positions_behind_the_second_cut(tiny, name):
    """Text positions are counted anew, multimodal ones kept: against blocks that are run by hand."""
    model, inputs = tiny.vlm(name), tiny.inputs(name, batch=1)
    target = 6 if name == "llava" else 4
    with FlowCut(target_tokens=target, second_stage="on").attach(model) as session:
        short = session.prepare(inputs)
        found = model(**inputs).logits
        columns = session.language.last.behind[0].columns
    language = model.model.language_model
    caught = {}
    hook = language.register_forward_pre_hook(lambda _m, _a, kwargs: caught.update(kwargs), with_kwargs=True)
    positions = short.get("position_ids")
    positions = (short["attention_mask"].cumsum(1) - 1) if positions is None else positions
    model(**{**short, "position_ids": positions})
    hook.remove()
    hidden = caught["inputs_embeds"]
    tables = language.rotary_emb(hidden, positions)
    for layer in language.layers[:2]:
        hidden = layer(hidden, position_embeddings=tables, attention_mask=None, position_ids=None)
    hidden = hidden.gather(1, columns[..., None].expand(-1, -1, hidden.shape[-1]))
    positions = torch.arange(hidden.shape[1])[None] if name == "llava" else positions[:, :, columns[0]]
    tables = language.rotary_emb(hidden, positions)
    for layer in language.layers[2:]:
        hidden = layer(hidden, position_embeddings=tables, attention_mask=None, position_ids=None)
    expected = model.lm_head(language.norm(hidden))
    assert expected.shape[1] < short["input_ids"].shape[1]
    torch.testing.assert_close(found, expected, **CLOSE)
