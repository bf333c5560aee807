"""Data module and training module: pairs stay pairs, masks repeat, the tokenizer stays as it is."""

from __future__ import annotations

import pytest
import torch

import mm
from mm.codecs.semantic_vq import SemanticVQTokenizer
from mm.encoders.evilm.data import MovingClips, MovingDataConfig
from mm.encoders.evilm.loss import retrieval_loss
from mm.encoders.evilm.module import EViLMModule, MaskConfig, TaskConfig, finetuning_losses
from mm.encoders.evilm.objective import LossWeights

SMALL = MovingDataConfig(num_clips=24, batch_size=4, held_out=6)


@pytest.fixture(scope="module")
def data():
    found = MovingClips(SMALL)
    found.setup("fit")
    return found


@pytest.fixture(scope="module")
def codes(tmp_path_factory):
    return str(mm.create_model("semantic_vq_tiny").save_pretrained(tmp_path_factory.mktemp("codes") / "tok"))


@pytest.fixture
def batch(data):
    return next(iter(data.train_dataloader()))


def module(codes, **settings):
    masks = MaskConfig(kinds=("rm", "bm", "thing"), ratio=0.5, words=0.5)
    return EViLMModule(**{"tokenizer": codes, "masks": masks} | settings)


def test_each_clip_comes_with_its_own_words(data, codes):
    """The thing's colour in the pixels, its caption and its answer say the same."""
    from mm.data.words import COLOURS

    tokenizer = module(codes).model.tokenizer
    clips = data._sets["train"]
    checked = 0
    for one in data.train_dataloader():
        for row in range(len(one["frames"])):
            words = tokenizer.decode(one["input_ids"][row], skip_special_tokens=True).split()
            patch = one["covered"][row, 0].repeat_interleave(8, 0).repeat_interleave(8, 1)
            pixels = one["frames"][row, 0][:, patch].float()  # (3, n)
            table = torch.tensor([COLOURS[name] for name in COLOURS], dtype=torch.float32)
            near = (pixels.T[:, None] - table).norm(dim=-1).amin(0).argmin()
            assert list(COLOURS)[int(near)] == words[2]
            question = tokenizer.decode(one["question_ids"][row])
            answer = tokenizer.convert_ids_to_tokens(int(one["answer_ids"][row]))
            place = {"colour": 2, "shape": 3, "small": 1, "move": 5}
            assert answer == words[next(at for word, at in place.items() if word in question)]
            assert question.rstrip("[PAD] ").endswith("answer: [MASK] [SEP") or "[MASK]" in question
        checked += len(one["frames"])
        if checked >= len(clips):
            break


def test_a_resumed_stream_goes_on_where_it_stood(data):
    whole = iter(data.train_dataloader())
    batches = [next(whole) for _ in range(3)]
    other = MovingClips(SMALL)
    other._sets = data._sets
    other.load_state_dict({"position": 2 * SMALL.batch_size})
    assert torch.equal(next(iter(other.train_dataloader()))["frames"], batches[2]["frames"])
    assert not torch.equal(batches[0]["frames"], batches[2]["frames"])


def test_validation_shows_what_training_leaves_out(data):
    from mm.encoders.evilm.scenes import combinations

    held_out = {f"{colour} {shape} moves {direction}" for colour, shape, direction in combinations("held_out")}
    tokenizer = mm.create_model("evilm_tiny").tokenizer
    rows = [row for one in data.val_dataloader() for row in one["input_ids"]]
    texts = [tokenizer.decode(row, skip_special_tokens=True) for row in rows]
    assert len(texts) == SMALL.held_out and all(text.split(" ", 2)[2] in held_out for text in texts)


def test_a_step_trains_the_model_and_leaves_the_tokenizer(codes, batch):
    trained = module(codes)
    before = {key: value.clone() for key, value in trained.codes_of.state_dict().items()}
    start = trained.model.video.trunk.patch_embed.proj.weight.detach().clone()
    optimizer = torch.optim.AdamW([p for p in trained.parameters() if p.requires_grad], lr=1e-3)
    loss, logs = trained.compute_loss(batch)
    loss.backward()
    optimizer.step()
    assert all(torch.equal(value, before[key]) for key, value in trained.codes_of.state_dict().items())
    assert all(parameter.grad is None for parameter in trained.codes_of.parameters())
    assert not torch.equal(start, trained.model.video.trunk.patch_embed.proj.weight)
    assert {"words_loss", "codes_loss", "matching_loss", "contrast_loss", "code_top5", "matching_top1"} <= set(logs)
    parts = sum(float(logs[f"{name}_loss"].detach()) for name in ("words", "codes", "matching", "contrast"))
    assert float(loss.detach()) == pytest.approx(parts, rel=1e-4)


def test_learning_without_codes_leaves_their_head_alone(codes, batch):
    """The switch of the comparison: the same step, masks and words, and nothing learned from codes."""
    found = {}
    for share in (1.0, 0.0):
        trained = module(codes, weights=LossWeights(codes=share))
        loss, logs = trained.compute_loss(batch)
        loss.backward()
        head = trained.model.codes.expand.weight.grad
        found[share] = (
            float(loss.detach()),
            0.0 if head is None else float(head.abs().sum()),
            float(logs["codes_loss"].detach()),
        )
    assert found[1.0][1] > 0 and found[0.0][1] == 0
    assert found[1.0][0] - found[0.0][0] == pytest.approx(found[1.0][2], rel=1e-4)


def test_the_tokenizer_stays_out_of_checkpoints(codes):
    trained = module(codes)
    checkpoint = {"state_dict": trained.state_dict()}
    trained.on_save_checkpoint(checkpoint)
    assert not [key for key in checkpoint["state_dict"] if key.startswith("codes_of.")]
    trained.on_load_checkpoint(checkpoint)
    trained.load_state_dict(checkpoint["state_dict"])
    assert not trained.train().codes_of.training


def test_masks_repeat_for_a_step_and_targets_come_from_clean_frames(codes, batch):
    trained, other = module(codes), module(codes, seed=1)
    first, again, third = trained.prepare(batch), trained.prepare(batch), other.prepare(batch)
    assert torch.equal(first.keep, again.keep) and torch.equal(first.masked_ids, again.masked_ids)
    assert not torch.equal(first.keep, third.keep)
    assert torch.equal(first.codes, SemanticVQTokenizer.from_pretrained(codes).encode(batch["frames"]))
    assert torch.equal(first.codes, third.codes), "targets must not depend on the mask"
    given = torch.full_like(first.codes, 7)
    assert torch.equal(trained.prepare(batch | {"codes": given}).codes, given)


def test_a_thing_mask_hides_the_thing_and_nothing_else(codes, batch):
    hidden = ~module(codes, masks=MaskConfig(kinds=("thing",))).prepare(batch).keep
    spread = hidden.repeat_interleave(2, -1).repeat_interleave(2, -2)
    assert (spread | ~batch["covered"]).all()
    blocks = batch["covered"].unflatten(-1, (4, 2)).unflatten(2, (4, 2)).any(-1).any(3)
    assert torch.equal(hidden, blocks)
    with pytest.raises(ValueError, match="no `covered`"):
        module(codes).prepare({key: value for key, value in batch.items() if key != "covered"})


def test_fine_tuning_reads_the_mask_and_scores_every_pair(codes, batch):
    model = module(codes).model.eval()
    losses, scores = finetuning_losses(model, batch, 3)
    video = model.encode_video(batch["frames"].float() / 255)
    text = model.encode_text(batch["input_ids"], batch["input_ids"] != 0)
    rows = torch.arange(3)
    table = model.score_all(video.rows(rows), text.rows(rows), chunk_size=4)
    torch.testing.assert_close(losses["retrieval"], retrieval_loss(table), rtol=1e-4, atol=1e-4)
    place = (batch["question_ids"] == model.tokenizer.mask_token_id).int().argmax(1)
    fused = model.fuse(video, model.encode_text(batch["question_ids"], batch["question_ids"] != 0))
    logits = model.word_logits(fused.text[torch.arange(4), place])
    expected = torch.nn.functional.cross_entropy(logits, batch["answer_ids"])
    torch.testing.assert_close(losses["answers"], expected, rtol=1e-4, atol=1e-4)
    assert set(scores) == {"answer_top1", "retrieval_top1"}
    unknown = finetuning_losses(model, batch | {"answer_ids": torch.full((4,), -100)}, 3)[0]
    assert unknown["answers"] == 0


def test_equal_captions_are_no_wrong_pairs(codes, batch):
    model = module(codes).model.eval()
    same = {key: batch[key][:2] for key in ("frames", "input_ids")}
    same["input_ids"] = same["input_ids"][:1].expand(2, -1)
    losses, scores = finetuning_losses(model, same, 2)
    assert losses["retrieval"] == 0 and scores["retrieval_top1"] == 1
    assert "answers" not in losses


def test_fine_tuning_can_replay_pre_training(codes, batch):
    plain = module(codes, stage="finetune", tasks=TaskConfig())
    both = module(codes, stage="finetune", tasks=TaskConfig(replay=0.5))
    total, logs = both.compute_loss(batch)
    names = ("words", "codes", "matching", "contrast")
    replayed = 0.5 * sum(float(logs[f"{name}_loss"]) for name in names)
    alone, found = plain.compute_loss(batch)
    assert float(total) == pytest.approx(float(alone) + replayed, rel=1e-4) and "codes_loss" not in found


def test_what_does_not_fit_is_said(codes, batch, tmp_path):
    with pytest.raises(ValueError, match="stage must be"):
        module(codes, stage="both")
    with pytest.raises(ValueError, match="predicts 256 codes, 2 along a cell of 16"):
        from mm.encoders.evilm.module import check_codes

        check_codes(mm.create_model("evilm_tiny"), mm.create_model("semantic_vq_tiny", patch_size=16))
    with pytest.raises(ValueError, match="text tokenizer"):
        loose = mm.create_model("evilm_tiny")
        loose.tokenizer = None
        EViLMModule(evilm=str(loose.save_pretrained(tmp_path / "loose")), tokenizer=codes)
    with pytest.raises(ValueError, match="trains an EViLM"):
        EViLMModule(evilm=codes, tokenizer=codes)
    with pytest.raises(ValueError, match="needs question_ids"):
        finetuning_losses(module(codes).model, {"frames": batch["frames"]}, 2)
    with pytest.raises(ValueError, match="num_clips at least batch_size"):
        MovingDataConfig(num_clips=3)
    with pytest.raises(ValueError, match="kinds must be of"):
        MovingDataConfig(kinds=("mood",))
