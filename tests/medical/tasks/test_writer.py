"""The writer: prefix, tokens, learning, files; and the phantom questions it learns from."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("monai")

import mm
from mm.backbone import LanguageBackbone
from mm.medical.phantom_reports import report
from mm.medical.phantoms import draw_case, phantom
from mm.medical.tasks.answering import DRAFT_MARK, with_choices
from mm.medical.tasks.parts import MissingPartError
from mm.medical.tasks.phantom_dialogues import (
    DialogueConfig,
    dialogue_batch,
    dialogues,
    existence,
    findings_in,
    writer_tokenizer,
)
from mm.medical.tasks.writer import Writer, WriterConfig, answer_loss, yes_no_loss
from mm.medical.tasks.writer_module import WriterModule, frozen_inputs
from mm.medical.tasks.writer_scores import evaluate, finding_f1
from mm.medical.volumes import Volume


@pytest.fixture(scope="module")
def batch():
    return dialogue_batch([0, 2], DialogueConfig(questions=4))


def small(**options) -> WriterModule:
    return WriterModule(model_path="", writer={"width": 48, "depth": 2, **options})


def run(module: WriterModule, batch, rows=slice(None), length: int | None = None):
    inputs = {name: value[rows] for name, value in frozen_inputs(module.base, batch).items()}
    answer = {"input_ids": batch["answer_ids"][rows, :length], "attention_mask": batch["answer_mask"][rows, :length]}
    with torch.no_grad():
        return module.model.eval()(**inputs, **answer)


def test_padding_of_question_and_answer_changes_nothing(batch):
    module = small()
    together = run(module, batch)
    short = dict(batch)
    keep = int(batch["attention_mask"][3].sum())
    for name in ("input_ids", "token_type_ids", "attention_mask", "unit_starts"):
        short[name] = batch[name][:, :keep]
    assert keep < batch["input_ids"].shape[1], "nothing is padded, so nothing is tested"
    alone = run(module, short, slice(3, 4), 2)
    torch.testing.assert_close(alone.logits[0], together.logits[3, :2], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(alone.yes_no[0], together.yes_no[3], rtol=1e-4, atol=1e-4)


def test_only_question_tokens_are_the_prefix_and_they_see_the_scan(batch):
    module = small()
    inputs = frozen_inputs(module.base, batch)
    fused, memory = module.model.fused(inputs["features"], inputs["states"], inputs["visible"])
    prefix, real = module.model.prefix(fused, memory, inputs["keep"])
    assert prefix.shape[1] == inputs["keep"].shape[1] and torch.equal(real.sum(1), inputs["keep"].sum(1))
    assert not real[:, 0].any() and real[:, -1].all()  # padding left, so that the answer follows at once
    expected = module.model.projector(fused[0, inputs["keep"][0]])
    torch.testing.assert_close(prefix[0, real[0]], expected)
    other, _ = module.model.fused(inputs["features"].flip(0), inputs["states"], inputs["visible"])
    assert (other - fused).abs().max() > 1e-3
    wide = small(visual_prefix=True)
    longer, _ = wide.model.prefix(fused, memory, inputs["keep"])
    assert longer.shape[1] == prefix.shape[1] + memory.shape[1]


def test_one_end_token_is_a_target_even_if_padding_is_the_same_token(batch):
    writer = small().model
    tokens = writer.answer_tokens(["no", "the spleen is enlarged."])
    assert tokens["labels"][0].tolist()[2:] == [-100] * (tokens["labels"].shape[1] - 2)
    writer.tokenizer.pad_token = writer.tokenizer.eos_token
    tokens = writer.answer_tokens(["no", "the spleen is enlarged."])
    assert (tokens["labels"] == writer.end_id).sum(1).tolist() == [1, 1]
    assert tokens["input_ids"][:, 0].tolist() == [writer.begin_id] * 2
    assert tokens["attention_mask"].sum(1).tolist() == [2, 6]
    made = small().model.answer_tokens([one.answer for one in dialogues(draw_case(0), 0, 4)])
    for ours, theirs in (("input_ids", "answer_ids"), ("labels", "labels"), ("attention_mask", "answer_mask")):
        width = made[ours].shape[1]
        assert torch.equal(made[ours], batch[theirs][:4, :width])


def test_losses_leave_out_what_was_not_asked():
    logits, labels = torch.randn(2, 3, 5), torch.tensor([[1, 2, -100], [-100, -100, -100]])
    expected = torch.nn.functional.cross_entropy(logits[0, :2], labels[0, :2])
    torch.testing.assert_close(answer_loss(logits, labels), expected)
    heads = torch.tensor([2.0, -1.0, 50.0])
    expected = torch.nn.functional.binary_cross_entropy_with_logits(heads[:2], torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(yes_no_loss(heads, torch.tensor([1, 0, -100])), expected)


def test_one_batch_can_be_learned_and_the_frozen_model_stays(batch):
    module = small()
    before = {name: value.clone() for name, value in module.base.state_dict().items()}
    names = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert names and not any(name.startswith("base") for name in names)
    optimizer = torch.optim.AdamW(module.parameters(), 5e-3)
    losses = []
    for _ in range(70):
        loss, _ = module.compute_loss(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.35 * losses[0]
    assert all(torch.equal(value, before[name]) for name, value in module.base.state_dict().items())


def test_a_saved_writer_is_the_same_and_belongs_to_its_model(batch, tmp_path, model):
    module = small()
    again = mm.load(module.model.save_pretrained(tmp_path / "w"))
    assert again.config == module.model.config
    ours = run(module, batch)
    module.model = again
    assert torch.equal(run(module, batch).logits, ours.logits)
    again.fits(module.base)
    with pytest.raises(ValueError, match="trained on weights"):
        again.fits(mm.create_model("velvet_tiny", seed=5))
    with pytest.raises(ValueError, match="fusion layers"):
        WriterConfig(text=mm.create_model("velvet_tiny", seed=5).config.text.__class__(fusion_layers=0))


def test_a_published_language_model_is_not_saved_again(model, tmp_path):
    """Adapters, projection and fusion only: the language model is read from its own folder."""
    pytest.importorskip("peft")
    tokenizer = writer_tokenizer()
    backbone = LanguageBackbone.tiny("llama", vocab_size=len(tokenizer))
    backbone.model.save_pretrained(tmp_path / "lm")
    tokenizer.save_pretrained(tmp_path / "lm")
    path = str(tmp_path / "lm")
    writer = Writer.around(model, LanguageBackbone.from_pretrained(path), language_path=path, lora_rank=2)
    trainable = {name for name, p in writer.backbone.named_parameters() if p.requires_grad}
    assert trainable and all(".lora_" in name for name in trainable)
    assert {name.split(".lora_")[0].rsplit(".", 1)[1] for name in trainable} == {"q_proj", "k_proj", "v_proj"}
    with torch.no_grad():
        for name, parameter in writer.named_parameters():
            if ".lora_" in name or name.startswith("projector"):
                parameter.copy_(torch.randn(parameter.shape) * 0.2)
    stored = writer.save_pretrained(tmp_path / "w")
    from safetensors import safe_open

    with safe_open(stored / "model.safetensors", "pt") as file:
        assert not any(key.startswith("backbone.") and ".lora_" not in key for key in file.keys())  # noqa: SIM118
    loaded = mm.load(stored)
    batch = dialogue_batch([0], DialogueConfig(questions=2))
    inputs = frozen_inputs(model, batch)
    for each in (writer, loaded):
        each.eval()
    with torch.no_grad():
        one, other = (
            each(**inputs, input_ids=batch["answer_ids"], attention_mask=batch["answer_mask"]).logits
            for each in (writer, loaded)
        )
    torch.testing.assert_close(one, other)


def test_ask_and_report_of_a_model_with_and_without_its_part(models, model, scans, tmp_path):
    bare = mm.create_model("velvet_tiny")
    volume = Volume.from_array(phantom(seed=1, size=24).hu, phantom(seed=1, size=24).affine)
    for call, what in ((lambda: bare.ask(volume, "Is it?"), "mm fit --config medical/writer"),
                       (lambda: bare.report(volume), "mm fit --config medical/writer"),
                       (lambda: bare.segment(volume), "mm.medical.velvet.transfer")):  # fmt: skip
        with pytest.raises(MissingPartError, match=what):
            call()
    with pytest.raises(ValueError, match="segmenter is a Segmenter"):
        bare.attach(segmenter=model)
    loaded = mm.load(models / "velvet")
    answer = loaded.ask(volume, "Is there a pleural effusion?", max_new_tokens=3)
    assert 0 <= answer.confidence <= 1 and "Research use only" in answer.note
    with pytest.raises(ValueError, match="question is empty"):
        loaded.ask(volume, " ")
    draft = loaded.report(volume, max_new_tokens=12)
    assert draft.text.startswith(DRAFT_MARK) and not draft.references
    assert loaded.segment(volume).labels.shape == volume.hu.shape
    assert with_choices("Where?", ()) == "Where?"


def test_questions_have_one_true_answer_and_reports_can_be_read_back():
    for seed in range(0, 120, 2):
        case = draw_case(seed)
        true = {(f.place, tuple(sorted(f.attributes.items()))) for f in case.findings}
        assert findings_in(" ".join(report(case))) == true
        for one in dialogues(case, seed, 8):
            if one.kind == "choice":
                names = one.question.rstrip("?").split()
                assert one.answer in (names[-3], names[-1]) and names[-3] != names[-1]
                assert any(one.answer in finding.attributes.values() for finding in case.findings)
    assert findings_in("The moon is normal.") == set()
    assert finding_f1([("The spleen is enlarged.", "Enlargement of the spleen."), ("", "The spine is normal.")]) == 1.0
    assert finding_f1([("The abdominal aorta is dilated.", "The abdominal aorta is calcified.")]) == 0.0


@pytest.mark.slow
def test_dialogues_are_learned_and_need_the_right_scan(monkeypatch):
    """16 pairs are learnt by heart. All are asked the same, so with another's scan the other's answers come."""

    def same_questions(case, seed, count):
        return [existence(case, "spleen"), existence(case, "pleura")]

    monkeypatch.setattr("mm.medical.tasks.phantom_dialogues.dialogues", same_questions)
    module = WriterModule(writer={"width": 48, "depth": 2})
    batch = dialogue_batch(list(range(0, 16, 2)), DialogueConfig(questions=2))
    optimizer = torch.optim.AdamW(module.parameters(), 3e-3)
    for _ in range(100):
        loss, logs = module.compute_loss(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert logs["answers_right"] > 0.95
    answers = batch["yes_no"].view(8, 2)
    alike = (answers == answers.roll(1, dims=0)).float().mean()
    with torch.no_grad():
        others = module.compute_loss({**batch, "volume": batch["volume"].roll(-1, dims=0)})[1]["answers_right"]
        blank = module.compute_loss({**batch, "volume": torch.zeros_like(batch["volume"])})[1]["answers_right"]
    assert alike < 0.7 and abs(others - alike) < 0.15 and blank < 0.75
    monkeypatch.undo()
    scores = evaluate(module.model.eval(), seed=0, count=4, model=module.base)
    assert set(scores) >= {"yes_no", "choice", "finding_f1", "choice_wrong_scan"}
