"""What the rules of VisionThink must do beyond the published numbers: invariants, strict readings, bad input."""

import random

import pytest
import torch

from mm.pruning.visionthink import (
    ResolutionPolicy,
    ToolProtocol,
    format_reward,
    group_rewards,
    grpo_advantages,
    grpo_loss,
    label_by_rollouts,
    mrope_positions,
    pack_trajectories,
    parse_tool_call,
    token_grid,
)
from mm.pruning.visionthink.grpo import token_log_probs
from mm.pruning.visionthink.judge import JudgeFailure, LanguageModelJudge, exact, numeric
from mm.pruning.visionthink.packing import SpecialTokens, Trajectory, Turn, finish_turn
from mm.pruning.visionthink.protocol import CALL_TEXT


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


CALL = f"<tool_call>{CALL_TEXT}</tool_call>"


@pytest.mark.parametrize(
    ("text", "outcome", "error"),
    [
        (CALL, "image", None),
        ('<tool_call>{\n "arguments": {"action": "resize"},\n "name": "resize_image"\n}</tool_call>', "image", None),
        (CALL.replace("resize_image", "crop"), "error", "wrong function name"),
        (CALL.replace('"resize"', '"crop"'), "error", "wrong action or more than one object"),
        (CALL.replace('"action": "resize"', '"action": "resize", "times": 4'), "error", "unknown argument"),
        (CALL + CALL, "error", "wrong action or more than one object"),
        ('<tool_call>{"name": "resize_image"}</tool_call>', "error", "missing key"),
        ("<tool_call>[1]</tool_call>", "error", "missing key"),
        ("<tool_call>{oops}</tool_call>", "error", "invalid json"),
        ("<tool_call>" + "[" * 100_000 + "</tool_call>", "error", "no object found"),
        ("<answer>7</answer>", "finished", None),
    ],
)
def test_strict_calls(text, outcome, error):
    call = parse_tool_call(text, "strict")
    assert (call.outcome, call.error) == (outcome, error)


def test_strict_format_wants_valid_json_and_forgives_white_space():
    asked, answered = f"<think>small</think>{CALL}", "<think>now</think><answer>7</answer>"
    assert format_reward([asked, answered], "strict_json") == (1, 1)
    assert format_reward([asked, f"\n{answered}\n\n"], "strict_json") == (1, 1)
    assert format_reward([asked, f"\n{answered}"]) == (0, 1)
    garbage = "<think>small</think><tool_call>larger</tool_call>"
    assert format_reward([garbage, answered], "strict_json") == (0, 1)
    assert format_reward([garbage, answered]) == (1, 1)


def test_advantages_sum_to_nothing_and_do_not_feel_scale_or_shift():
    rewards = torch.tensor([1.5, 1.4, 0.5, 0.0, 1.0, 0.2, 0.9], dtype=torch.float64)
    groups = torch.tensor([3, 3, 3, 3, 9, 9, 9])
    ours = grpo_advantages(rewards, groups)
    torch.testing.assert_close(ours[:4], torch.tensor([0.8985, 0.7603, -0.4838, -1.1750]).double(), atol=1e-4, rtol=0)
    assert abs(float(ours[:4].sum())) < 1e-12 and abs(float(ours[4:].sum())) < 1e-12
    torch.testing.assert_close(grpo_advantages(7 * rewards - 3, groups), ours, atol=1e-4, rtol=0)


def test_few_direct_answers_are_guesses_in_print_and_only_lose_their_lead_in_the_release():
    called = [0] * 2 + [1] * 14
    paper = grpo_advantages(group_rewards([1] * 16, called, [1] * 16, rule="paper"), torch.zeros(16).long())
    torch.testing.assert_close(paper[[0, -1]], torch.tensor([-2.562, 0.366]), atol=1e-3, rtol=0)
    release = group_rewards([1] * 16, called, [1] * 16)
    assert float(release.std()) < 1e-6


def test_the_penalty_does_not_touch_wrong_answers():
    for rule in ("release", "paper"):
        assert group_rewards([0, 0, 1], [0, 1, 1], [1, 1, 1], rule=rule)[:2].tolist() == [0.5, 0.5]


def trajectory(observation=(5, 6), second=(7, 8, 151645)):
    turns = [Turn([9, 10, 151645], True), Turn([151644, *observation, 151645], False), Turn(list(second), True)]
    return Trajectory([1, 2, 3], [], turns)


def loss_of(logits, packed):
    start = packed.prompt_length
    log_prob, entropy = token_log_probs(logits, packed.input_ids % logits.shape[-1])
    log_prob, entropy = (x[:, start - 1 :] for x in (log_prob, entropy))
    mask = packed.loss_mask[:, start:]
    return grpo_loss(log_prob, log_prob.detach(), torch.tensor([1.0, -1.0]), mask, ref_log_prob=log_prob.detach())


def test_observation_tokens_get_no_gradient_and_the_first_token_behind_them_does(rng):
    packed = pack_trajectories([trajectory(), trajectory((5,))], prompt_length=4, response_length=14)
    logits = torch.randn(2, 18, 31, generator=rng, requires_grad=True)
    loss_of(logits, packed).total.backward()
    reached = logits.grad.abs().sum(-1) > 0  # (B, N): the position that predicts the next token
    predicts = torch.zeros_like(reached)
    predicts[:, :-1] = packed.loss_mask[:, 1:]
    assert torch.equal(reached, predicts)
    second = 4 + 3 + 4  # prompt, first turn, observation
    assert bool(reached[0, second - 1]) and not bool(reached[0, 4 + 3 - 1])


def test_the_first_update_is_the_plain_policy_gradient(rng):
    packed = pack_trajectories([trajectory(), trajectory((5,))], prompt_length=4, response_length=14)
    loss = loss_of(torch.randn(2, 18, 31, generator=rng), packed)
    assert float(loss.kl) == 0 and float(loss.clip_fraction) == 0 and float(loss.policy) == pytest.approx(0, abs=1e-6)


def test_a_response_without_an_end_is_hidden_and_gives_no_nan():
    endless = Trajectory([1], [], [Turn([4] * 30, True)])
    packed = pack_trajectories([endless, endless], prompt_length=2, response_length=8)
    assert not packed.loss_mask.any()
    loss = loss_of(torch.zeros(2, 10, 31, requires_grad=True), packed)
    loss.total.backward()
    assert float(loss.total.detach()) == 0


def test_finishing_a_turn():
    tokens = SpecialTokens()
    assert finish_turn([1, 2, 151665, 151645], tokens) == [1, 2, 151645]
    assert finish_turn([1, 2, 3], tokens) == [1, 2, 151645]
    assert finish_turn([], tokens) == [151645]


def test_pictures_and_tokens_must_fit():
    with pytest.raises(ValueError, match="trajectory 0: 1 image tokens for 0 pictures"):
        pack_trajectories([Trajectory([1, 151655], [])], prompt_length=9, response_length=9)
    with pytest.raises(ValueError, match="more than prompt_length=1"):
        pack_trajectories([Trajectory([1, 2], [])], prompt_length=1, response_length=1)
    ids = torch.tensor([[1, 7, 7, 7]])
    with pytest.raises(ValueError, match=r"row 0: .*needs 4 image tokens"):
        mrope_positions(ids, [[(1, 4, 4)]], image_token_id=7)
    with pytest.raises(ValueError, match="row 0: image tokens for more than 0"):
        mrope_positions(ids, [[]], image_token_id=7)


def test_the_first_look_saves_three_quarters_and_nothing_at_the_floor():
    policy = ResolutionPolicy.evaluation()
    assert policy.saving(2048, 1024) == pytest.approx(1 - 666 / 2701)
    assert policy.saving(56, 56) == 0 and policy.saving(55, 56) < 0
    assert policy.sizes(1, 1) == ((28, 28), (28, 28))
    with pytest.raises(ValueError, match="at least one pixel"):
        token_grid(0, 5)


def test_texts_can_be_replaced_but_not_lose_their_parts():
    protocol = ToolProtocol()
    first = protocol.first_turn("How {many}?", pictures=2)
    assert first.endswith("How {many}?") and first.count("<|image_pad|>") == 2
    assert protocol.messages("x")[0]["content"].count("resize_image") == 2
    assert "broken" in protocol.error_turn("broken")
    with pytest.raises(ValueError, match=r"'question'.*\{vision\}"):
        ToolProtocol(question="{question}")


def test_labelling_sorts_three_ways():
    right = {"easy": (1.0, 1.0), "hard": (0.1, 0.95), "odd": (0.5, 0.6), "impossible": (0.0, 0.0)}

    def model(sample, look, seed):
        draw = random.Random(f"{sample} {look} {seed}").random()
        return draw < right[sample][look == "full"]

    found = {entry.sample: entry.label for entry in label_by_rollouts(model, right)}
    assert found == {"easy": "low_suffices", "hard": "needs_full", "odd": "unclear", "impossible": "unclear"}
    with pytest.raises(ValueError, match="margin"):
        label_by_rollouts(model, right, n=4, margin=5)


def test_judges():
    assert exact("?", " Red. ", "red") and not exact("?", "red", "blue")
    assert numeric("?", "1,200 kg", "it is 1200.0 kg") and numeric("?", "50%", "0.5") and not numeric("?", "3", "4")
    assert not numeric("?", "3", "3 or 4")
    replies = iter(["no idea", "Score: 0, no: score: 1"])
    asked = []
    judge = LanguageModelJudge(lambda system, user, temperature: asked.append(temperature) or next(replies))
    assert judge("q", "red", "crimson") and judge("q", "red", "crimson")
    assert asked == [0.0, 0.2]  # the second question came from the cache

    def silent(*_):
        raise TimeoutError("120 s")

    with pytest.raises(JudgeFailure, match="3 attempts; last: TimeoutError"):
        LanguageModelJudge(silent)("q", "t", "a")
