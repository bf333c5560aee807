"""Training of VisionThink: what a packed conversation means to the model, and steps of both stages."""

import pytest
import torch
from PIL import Image

from mm.pruning.visionthink import token_grid
from mm.pruning.visionthink.data import PromptData, TraceData
from mm.pruning.visionthink.evaluate import answers, blank_second, held_out, scores
from mm.pruning.visionthink.model import VisionThinkModel, visionthink_tiny
from mm.pruning.visionthink.module import GrpoModule, WarmStartModule
from mm.pruning.visionthink.tiny import TINY_POLICY, TINY_PROTOCOL
from mm.pruning.visionthink.traces import log_probs, packed_batch, trace_batch, written_trace
from mm.pruning.visionthink.weaves import SIDE, weave_sample

SMALL = {"width": 32, "layers": 2, "vision_width": 32, "vision_layers": 1}


@pytest.fixture(scope="module")
def model():
    return visionthink_tiny(**SMALL)


def batch_of(model, seeds, asks):
    tokens = model.generator().tokens
    samples = [weave_sample(seed) for seed in seeds]
    return trace_batch(samples, asks, model.processor, tokens, TINY_PROTOCOL, TINY_POLICY)


def trained(model, batch):
    """Log-probabilities of the trained tokens, row by row."""
    with torch.no_grad():
        log_prob, _, mask = log_probs(model.vlm, batch)
    return [row[keep] for row, keep in zip(log_prob, mask, strict=True)]


def test_neither_padding_nor_neighbours_change_a_conversation(model):
    together = trained(model, batch_of(model, [1, 2, 3], [True, False, True]))
    for index, (seed, asks) in enumerate(zip([1, 2, 3], [True, False, True], strict=True)):
        alone = trained(model, batch_of(model, [seed], [asks]))[0]
        torch.testing.assert_close(together[index], alone, atol=1e-5, rtol=1e-4)


def test_the_second_picture_reaches_the_second_turn_and_never_the_first(model):
    sample, tokens = weave_sample(1), model.generator().tokens
    low, full = TINY_POLICY.pair(sample.image)
    grids = [(1, *token_grid(*image.size, min_pixels=64, factor=8).patches) for image in (low, full)]
    trace = written_trace(
        sample.question, sample.answer, grids, asks=True, tokenizer=model.processor.tokenizer, protocol=TINY_PROTOCOL
    )
    grey = Image.new("RGB", full.size, (90, 90, 90))
    seen, blank = (trained(model, packed_batch([trace], [[low, x]], model.processor, tokens))[0] for x in (full, grey))
    first = len(trace.turns[0].ids)
    assert torch.equal(seen[:first], blank[:first])
    assert (seen[first:] - blank[first:]).abs().max() > 1e-4


def test_weaves_look_alike_at_half_the_side():
    """The best linear reading of the small picture is near chance for the weave and good for the colour."""
    samples = [weave_sample(seed) for seed in range(1600)]
    small = torch.stack(
        [torch.tensor(list(TINY_POLICY.pair(s.image)[0].tobytes()), dtype=torch.float32) / 255 for s in samples]
    )
    for kind, least, most in (("easy", 0.7, 1.0), ("hard", 0.0, 0.2)):
        rows = [index for index, s in enumerate(samples) if s.kind == kind]
        names = sorted({samples[index].answer for index in rows})
        x = torch.cat([small[rows], torch.ones(len(rows), 1)], 1).double()
        y = torch.tensor([names.index(samples[index].answer) for index in rows])
        half = len(rows) // 2
        ridge = x[:half].T @ x[:half] + 10.0 * torch.eye(x.shape[1])
        weights = torch.linalg.solve(ridge, x[:half].T @ torch.nn.functional.one_hot(y[:half], 9).double())
        right = ((x[half:] @ weights).argmax(1) == y[half:]).double().mean()
        assert len(names) == 9 and least <= right <= most, (kind, float(right))


def test_both_questions_share_the_picture():
    easy, hard = weave_sample(10), weave_sample(11)
    assert easy.image.tobytes() == hard.image.tobytes() and easy.kind != hard.kind
    assert easy.image.size == (SIDE, SIDE)


def test_the_warm_start_learns(tmp_path):
    module = WarmStartModule(sizes=SMALL)
    batch = next(iter(TraceData(batch_size=8).val_dataloader()))
    step = torch.optim.AdamW(module.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        loss, _ = module.compute_loss(batch)
        step.zero_grad()
        loss.backward()
        step.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.75 * losses[0]
    module.model.save_pretrained(tmp_path / "start")
    again = VisionThinkModel.from_pretrained(tmp_path / "start")
    assert all(torch.equal(a, b) for a, b in zip(module.model.parameters(), again.parameters(), strict=True))


def test_a_grpo_step_uses_groups_that_differ_and_leaves_the_reference_alone(tmp_path, monkeypatch):
    visionthink_tiny(**SMALL).save_pretrained(tmp_path / "start")
    module = GrpoModule(str(tmp_path / "start"), rollouts=4)
    monkeypatch.setattr(GrpoModule, "global_step", 0)
    asks = iter(range(10_000))

    def sometimes_tidy(turns, variant):  # an untrained model is never right: let the format make the difference
        return next(asks) % 2, 0

    monkeypatch.setattr("mm.pruning.visionthink.module.format_reward", sometimes_tidy)
    seeds = next(iter(PromptData(batch_size=2).val_dataloader()))
    before = [p.clone() for p in module.reference.parameters()]
    loss, logs = module.compute_loss(seeds)
    loss.backward()
    assert logs["groups_kept"] == 1.0 and float(logs["kl"].detach()) == pytest.approx(0, abs=1e-6)
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in module.model.parameters())
    assert all(p.grad is None for p in module.reference.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, module.reference.parameters(), strict=True))
    asked = iter(range(10_000))

    def sometimes_silent(question, truth, answer):
        if next(asked) == 0:
            raise TimeoutError("no reply")
        return False

    module.judge = sometimes_silent
    _, logs = module.compute_loss(seeds)
    assert logs["judge_failures"] == 1 and logs["groups_kept"] == 0.5
    monkeypatch.setattr("mm.pruning.visionthink.module.format_reward", lambda turns, variant: (1, 0))
    loss, logs = module.compute_loss(seeds)
    assert float(loss.detach()) == 0 and logs["groups_kept"] == 0.0


def test_scores_count_what_was_asked_and_spent(model):
    samples = held_out(8)
    found = scores(samples, answers(model, samples, mode="always", max_new_tokens=2))
    assert found["easy_calls"] == found["hard_calls"] == 1 and found["retain_ratio"] == pytest.approx(1.25)
    assert len(blank_second(model, samples[:2])) == 2
    with pytest.raises(ValueError, match="at least 2"):
        GrpoModule("anything", rollouts=1)
