"""Losses: alignment of codes, empty targets, matching as explicit passes."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from mm.encoders.evilm import PretrainingBatch, pretraining_losses
from mm.encoders.evilm.heads import CodeHead
from mm.encoders.evilm.loss import contrastive_loss, masked_code_loss, matching_loss, negative_texts, retrieval_loss
from mm.encoders.evilm.masking import mask_words


def batch_for(model, *, seed: int = 0, keep: torch.Tensor | None = None) -> PretrainingBatch:
    generator = torch.Generator().manual_seed(seed)
    frames = torch.rand(3, 2, 3, 64, 64, generator=generator)
    words = model.tokenize(["a red circle", "a large blue star", "is it a red circle?"])
    masked, labels = mask_words(words["input_ids"], (0, 2, 3), model.tokenizer.mask_token_id, generator, ratio=0.5)
    hidden = torch.ones(3, 2, 2, 2, dtype=torch.bool)
    hidden[:, :, 0, 1] = False
    return PretrainingBatch(
        frames=frames,
        keep=hidden if keep is None else keep,
        codes=torch.randint(64, (3, 2, 4, 4), generator=generator),
        input_ids=words["input_ids"],
        masked_ids=masked,
        labels=labels,
        attention_mask=words["attention_mask"].bool(),
        texts=negative_texts(3, generator),
    )


def test_codes_of_a_cell_are_its_two_by_two_places():
    head = CodeHead(width=2, codebook_size=8, codes_per_cell=2, dropout=0.0)
    with torch.no_grad():  # channel k of the convolution says: cell value, plus a mark of the sub-position k
        head.expand.weight.zero_()
        head.expand.weight[:, 0] = 1000.0
        head.expand.bias.copy_(torch.arange(4.0))
    cells = torch.zeros(1, 1, 7, 7, 2)
    cells[..., 0] = torch.arange(49.0).view(7, 7)
    head.classify = torch.nn.Identity()
    found = head(cells)[0, 0, :, :, 0]
    for i in range(14):
        for j in range(14):
            assert found[i, j] == 1000 * (i // 2 * 7 + j // 2) + 2 * (i % 2) + j % 2


def test_only_codes_behind_hidden_cells_count():
    torch.manual_seed(0)
    logits, codes = torch.randn(2, 3, 4, 4, 5), torch.randint(5, (2, 3, 4, 4))
    keep = torch.rand(2, 3, 2, 2) < 0.5
    expected = [
        F.cross_entropy(logits[b, t, i, j], codes[b, t, i, j])
        for b, t, i, j in torch.cartesian_prod(*map(torch.arange, (2, 3, 4, 4))).tolist()
        if not keep[b, t, i // 2, j // 2]
    ]
    torch.testing.assert_close(masked_code_loss(logits, codes, keep), torch.stack(expected).mean())


def test_nothing_hidden_gives_zero_with_finite_gradients(model):
    losses = pretraining_losses(model, batch_for(model, keep=torch.ones(3, 2, 2, 2, dtype=torch.bool)))
    assert losses["codes"] == 0
    losses["codes"].backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients and all(g.isfinite().all() for g in gradients)


def test_the_code_loss_reaches_the_first_layer_of_the_trunk(model):
    pretraining_losses(model, batch_for(model))["codes"].backward()
    assert model.video.trunk.patch_embed.proj.weight.grad.abs().sum() > 0
    assert model.video.trunk.stages[0][0].attn.table.grad.abs().sum() > 0


def test_matching_is_cross_entropy_over_explicit_passes(model):
    batch = batch_for(model)
    video = model.encode_video(batch.frames, batch.keep)
    text = model.encode_text(batch.masked_ids, batch.attention_mask)
    passes = [model.score(video, text.rows(batch.texts[:, o])) for o in range(batch.texts.shape[1])]
    expected = F.cross_entropy(torch.stack(passes, 1) / 0.05, torch.zeros(3, dtype=torch.long))
    torch.testing.assert_close(pretraining_losses(model, batch)["matching"], expected, rtol=1e-4, atol=1e-4)


def test_equal_captions_are_no_negatives():
    logits = torch.tensor([[0.1, 5.0, 0.0], [0.1, 0.2, 0.3]], requires_grad=True)
    same = torch.tensor([[True, True, False], [True, True, True]])
    loss = matching_loss(logits, same)
    expected = F.cross_entropy(torch.tensor([[2.0, 0.0]]), torch.tensor([0])) / 2  # the second row has no negative left
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert logits.grad.isfinite().all() and logits.grad[0, 1] == 0


def test_negatives_are_other_rows_without_repetition():
    rows = negative_texts(6, torch.Generator().manual_seed(0))
    assert rows.shape == (6, 4) and torch.equal(rows[:, 0], torch.arange(6))
    assert all(len(set(row)) == 4 for row in rows.tolist())
    assert negative_texts(1, torch.Generator()).tolist() == [[0]]


def test_contrast_and_retrieval_take_both_directions():
    logits, target = torch.randn(4, 4), torch.arange(4)
    both = F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)
    torch.testing.assert_close(contrastive_loss(logits), both / 2)
    torch.testing.assert_close(retrieval_loss(0.05 * logits), both, rtol=1e-4, atol=1e-5)
