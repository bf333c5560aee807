"""VisionThink against numbers of the published code: format, calls, rewards, sizes, positions, loss, packing."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from mm.pruning.visionthink.advantage import grpo_advantages
from mm.pruning.visionthink.format import extract_answer, first_answer, format_reward, general_format_reward
from mm.pruning.visionthink.grpo import grpo_loss, kl_estimate, token_log_probs
from mm.pruning.visionthink.judge import any_digit_one, last_score
from mm.pruning.visionthink.mrope import mrope_positions
from mm.pruning.visionthink.packing import SpecialTokens, Trajectory, Turn, finish_turn, pack_trajectories
from mm.pruning.visionthink.resolution import ResolutionPolicy, token_grid
from mm.pruning.visionthink.reward import group_reward_parts, keeps_group, labelled_reward
from mm.pruning.visionthink.tool_call import parse_tool_call

DATA = Path(__file__).parents[2] / "parity" / "data"
FORMAT, REWARD, SIZES, PACKING = (
    json.loads((DATA / f"visionthink_{name}.json").read_text()) for name in ("format", "reward", "sizes", "packing")
)
GROUPS = [(settings, group) for settings in REWARD["sets"] for group in settings["groups"]]
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.mark.parametrize("case", FORMAT["format_cases"], ids=lambda case: case["id"])
def test_format(case):
    score, count = format_reward(case["segments"])
    assert (score, count) == (case["format"], case["tool_count"])
    for correct, expected in ((1, case["score_if_correct"]), (0, case["score_if_wrong"])):
        parts = group_reward_parts([correct], [count], [score], theta=0.0)
        assert float(parts.total) == pytest.approx(expected["total"], abs=1e-6)
        assert float(parts.format) == pytest.approx(expected["format"], abs=1e-6)


@pytest.mark.parametrize("case", FORMAT["tool_call_cases"], ids=lambda case: case["id"])
def test_tool_calls(case):
    call = parse_tool_call(case["text"])
    assert (call.outcome, call.error) == (case["outcome"], case.get("error_kind"))


def test_general_format_answers_and_judges():
    for case in FORMAT["general_format_cases"]:
        assert general_format_reward(case["response"]) == case["format"], case
    for case in FORMAT["answer_extraction"]:
        assert extract_answer(case["segments"]) == case["split"]
        assert first_answer(case["segments"]) == case["strict"]
    for case in FORMAT["judge_reply"]:
        assert any_digit_one(case["reply"]) == case["any_digit_one"]
        assert last_score(case["reply"]) == case["last_score_match"]


def test_labelled_rewards():
    for case in FORMAT["supervised_label"]:
        flags = [case["correct"]], [case["called"]], [case["label_use_tool"]], [1]
        assert float(labelled_reward(*flags, strict=case["strict"])) == pytest.approx(case["total"], abs=1e-6)


@pytest.mark.parametrize(("settings", "group"), GROUPS, ids=[group["id"] for _, group in GROUPS])
def test_rewards_and_advantages(settings, group):
    flags = [[rollout[key] for rollout in group["rollouts"]] for key in ("correct", "tool", "format")]
    options = {
        "theta": settings["theta"],
        "tool_penalty": settings["tool_call_penalty"],
        "direct_penalty": settings["direct_answer_penalty"],
        "format_weight": settings["format_weight"],
    }
    release = group_reward_parts(*flags, **options)
    torch.testing.assert_close(release.total, torch.tensor(group["total"]), atol=1e-6, rtol=0)
    if group["ratio"] is not None:
        assert release.ratio == pytest.approx(group["ratio"], abs=1e-6)
    assert keeps_group(release.total, failed=group.get("judge_failed", False)) == group["keep"]
    if group["advantage"] is not None:
        ours = grpo_advantages(release.total, torch.zeros(len(release.total), dtype=torch.int64))
        torch.testing.assert_close(ours, torch.tensor(group["advantage"]), atol=1e-4, rtol=0)
    paper = group_reward_parts(*flags, rule="paper", **options)
    torch.testing.assert_close(paper.total, torch.tensor(group["paper"]["total"]), atol=1e-6, rtol=0)
    assert paper.ratio == pytest.approx(group["paper"]["ratio"], abs=1e-6)


def check_size(size, expected):
    assert list(size) == expected["size"]
    if "tokens" in expected:
        grid = token_grid(*size)
        assert [list(grid.size), list(grid.patches), grid.tokens] == [
            expected["processed"], expected["grid_hw"], expected["tokens"],
        ]  # fmt: skip
    else:
        with pytest.raises(ValueError, match="200 times"):
            token_grid(*size)


@pytest.mark.parametrize("case", SIZES["evaluation"], ids=lambda case: "x".join(map(str, case["original"])))
def test_evaluation_sizes(case):
    low, full = ResolutionPolicy.evaluation().sizes(*case["original"])
    if "size" in case["low"]:  # the published code crashes on a side of one pixel; ours does not
        check_size(low, case["low"])
    check_size(full, case["full"])


@pytest.mark.parametrize("case", SIZES["training"], ids=lambda case: "x".join(map(str, case["original"])))
def test_training_sizes(case):
    policy, target = ResolutionPolicy.training(), case.get("target")
    target = target and (target["width"], target["height"])
    if "rejected" in case:
        with pytest.raises(ValueError, match="below 28"):
            policy.sizes(*case["original"], target=target)
        return
    low, full = policy.sizes(*case["original"], target=target)
    check_size(low, case["image1"])
    check_size(full, case["image2"])


def test_rounding_rule():
    for case in SIZES["smart_resize"]:
        limits = {"min_pixels": case["min_pixels"], "max_pixels": case["max_pixels"]}
        if "error" in case:
            with pytest.raises(ValueError):
                token_grid(case["width"], case["height"], **limits)
        else:
            grid = token_grid(case["width"], case["height"], **limits)
            assert [list(grid.size), grid.tokens] == [case["out"], case["tokens"]]


def test_pictures():
    stored = load_file(DATA / "visionthink_images.safetensors")
    training = ResolutionPolicy(below_min_side="reject", min_pixels=100, max_pixels=6000, full="multiple")
    for name, policy in (("eval", ResolutionPolicy.evaluation()), ("train", training)):
        for picture, which in zip(policy.pair(Image.fromarray(stored["image"].numpy())), ("low", "full"), strict=True):
            expected = stored[f"expected.{name}.{which}"].numpy().astype(int)
            assert np.abs(np.asarray(picture).astype(int) - expected).max() <= 1


def test_positions():
    stored = load_file(DATA / "visionthink_mrope.safetensors")
    names = {key.split(".")[0] for key in stored} - {"expected"}
    assert len(names) == 9
    for name in names:
        ids, mask = stored[f"{name}.input_ids"][None], stored[f"{name}.attention_mask"][None]
        grids = [stored.get(f"{name}.grid_thw", [])]
        ours = mrope_positions(ids, grids, image_token_id=151655, attention_mask=mask)
        assert torch.equal(ours[:, 0], stored[f"expected.{name}.position_ids"]), name


@pytest.mark.parametrize("agg", ["token_mean", "seq_mean"])
def test_loss_and_gradient(agg):
    stored = load_file(DATA / "visionthink_grpo.safetensors")
    logits, length = stored["logits"].requires_grad_(), stored["attention_mask"].shape[1]
    log_prob, entropy = (x[:, -length:] for x in token_log_probs(logits, stored["input_ids"]))
    torch.testing.assert_close(log_prob, stored["expected.log_prob"], **CLOSE)
    torch.testing.assert_close(entropy, stored["expected.entropy"], **CLOSE)
    advantages = grpo_advantages(stored["sequence_reward"], stored["group"])[:, None] * stored["attention_mask"]
    torch.testing.assert_close(advantages, stored["expected.advantages"], **CLOSE)
    loss = grpo_loss(
        log_prob, stored["old_log_prob"], advantages, stored["attention_mask"] * stored["multi_turn_mask"],
        ref_log_prob=stored["ref_log_prob"], entropy=entropy, agg=agg,
    )  # fmt: skip
    names = {"policy": "pg_loss", "drift": "ppo_kl", **{n: n for n in ("kl", "entropy", "clip_fraction", "total")}}
    for ours, theirs in names.items():
        torch.testing.assert_close(getattr(loss, ours).detach()[None], stored[f"expected.{agg}.{theirs}"], **CLOSE)
    loss.total.backward()
    torch.testing.assert_close(logits.grad, stored[f"expected.{agg}.grad_logits"], atol=1e-7, rtol=1e-5)
    for kind in ("kl", "abs", "mse", "low_var_kl"):
        ours = kl_estimate(log_prob.detach(), stored["ref_log_prob"], kind)
        torch.testing.assert_close(ours, stored[f"expected.kl_penalty.{kind}"], **CLOSE)


def played(case):
    """The published loop over scripted turns: what our packer is given."""
    prompt, tokens = PACKING["prompts"][case["prompt"]], SpecialTokens()
    grid = {which: (1, *token_grid(*prompt[which]).patches) for which in ("low", "full")}
    turns, pictures, tags = [], 1, {151657: "<tool_call>", 151658: "</tool_call>"}
    for round_ids in case["rounds"]:
        ids = finish_turn(round_ids, tokens)
        turns.append(Turn(ids, generated=True))
        call = parse_tool_call("".join(tags.get(i) or chr(i) for i in ids if i < 12288 or i in tags))
        if call.outcome == "finished" or pictures == PACKING["image_limit"]:
            break
        observation = PACKING["observation_ids"][call.outcome]
        turns.append(Turn(observation, generated=False, grids=[grid["full"]] if call.outcome == "image" else []))
        pictures += call.outcome == "image"
    return Trajectory(prompt["raw_ids"], [grid["low"]], turns)


def test_packing():
    lengths = PACKING["max_prompt_length"], PACKING["max_total_response_length"]
    cases = PACKING["trajectories"]
    packed = pack_trajectories([played(c) for c in cases], prompt_length=lengths[0], response_length=lengths[1])
    for row, case in enumerate(cases):
        expected = case["expected"]
        assert packed.input_ids[row, lengths[0] :].tolist() == expected["response_ids"]
        assert packed.attention_mask[row].int().tolist() == expected["attention_mask"]
        assert packed.multi_turn_mask[row].int().tolist() == expected["loss_mask"]
        assert packed.position_ids[:, row].tolist() == expected["position_ids"]
        assert packed.segments[row] == expected["segments"]
        if not case["cut_at_maximum"]:
            assert [list(grid) for grid in packed.grids[row]] == expected["grid_thw"]
