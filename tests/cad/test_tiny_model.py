"""The tiny model: tokenizer, sight, data, constrained proposals, re-ranking. Its scores are the business of the zoo."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("manifold3d", reason="training pictures are drawn by the mesh kernel: pip install 'mm[cad]'")

from PIL import Image

import mm
from mm.cad import emit, parse
from mm.cad.data import SIZE, PartData, PartDataConfig, PartRows, draw, draw_file
from mm.cad.drawing import render
from mm.cad.examples import PLATE
from mm.cad.generate import compare_sheet, generate
from mm.cad.kernel import build
from mm.cad.model import Candidate
from mm.cad.presets import openecad_tiny
from mm.cad.procedural import TINY, sample_part
from mm.cad.rerank import agreement, best, check
from mm.cad.seeing import as_seen, drawn
from mm.cad.tokenizer import program_tokenizer
from mm.data.split import Split
from mm.training.module import OptimizerConfig

SMALL = {"width": 32, "depth": 2, "tower_width": 32, "tower_depth": 2}


@pytest.fixture(scope="module")
def model():
    return openecad_tiny(**SMALL)


def text_of(seed: int) -> str:
    return emit(sample_part(seed).program, style="canonical")


def test_any_text_comes_back_and_tiny_programs_are_short():
    tokenizer = program_tokenizer()
    for text in (PLATE, text_of(1), "print('hello')\n\t-12.75e3"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    held_out = [text_of(seed) for seed in Split("test").seeds[:50]]
    lengths = [len(tokenizer(text).input_ids) for text in held_out]
    assert np.mean(lengths) < 0.2 * np.mean([len(text) for text in held_out])
    assert max(lengths) < 192


def test_seeing_cuts_and_shrinks_what_is_drawn():
    solid = build(sample_part(5).program, kernel="mesh", limits=None)
    small, large = draw(sample_part(5).program), render(solid, size=300)
    off_centre = np.full((400, 700, 3), 255, dtype=np.uint8)
    off_centre[50:350, 300:600] = large
    seen = as_seen(off_centre, SIZE)
    np.testing.assert_array_equal(seen, as_seen(large, SIZE))
    mask, reference = drawn(seen), drawn(small)
    assert (mask & reference).sum() / (mask | reference).sum() > 0.93
    with pytest.raises(ValueError, match="shows no part"):
        as_seen(np.full((50, 50, 3), 255, dtype=np.uint8), SIZE)


def test_rows_teach_the_program_and_nothing_else(model):
    batch = PartRows(PartDataConfig(), model.processor)(Split("test").seeds[:3])
    tokenizer = model.processor.tokenizer
    for index, seed in enumerate(Split("test").seeds[:3]):
        learned = batch["labels"][index] != -100
        answer = batch["input_ids"][index][learned]
        assert answer[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(answer[:-1]) == text_of(seed)
        assert torch.equal(batch["labels"][index][learned], answer)
    assert batch["pixel_values"].shape == (3, 3, SIZE, SIZE) and batch["pixel_values"].abs().max() <= 1


def test_training_pictures_from_a_file_are_those_that_are_drawn(model, tmp_path):
    draw_file(tmp_path / "parts.npz", 6)
    plain = {"noise": 0.0, "shift": 0}
    stored = PartRows(PartDataConfig(pictures=str(tmp_path / "parts.npz"), **plain), model.processor)
    fresh = PartRows(PartDataConfig(**plain), model.processor)
    for name, value in fresh(range(6)).items():
        assert torch.equal(value, stored(range(6))[name]), name
    assert torch.equal(stored(range(6, 9))["pixel_values"], stored(range(3))["pixel_values"]), "it goes round"
    noisy = PartRows(PartDataConfig(), model.processor)(range(6))["pixel_values"]
    assert 0 < (noisy - fresh(range(6))["pixel_values"]).abs().mean() < 0.3
    with pytest.raises(FileNotFoundError, match="draw_file"):
        PartRows(PartDataConfig(pictures=str(tmp_path / "none.npz")))


def test_the_run_configuration_trains(tmp_path):
    from mm.training.cli import fit

    sizes = [option for name, size in SMALL.items() for option in (f"--model.{name}", str(size))]
    command = ["--config", "cad/tiny", "--out", str(tmp_path / "run"), "--trainer.max_steps", "2", *sizes]
    command += ["--data.config.batch_size", "2", "--data.config.held_out_batches", "1"]
    assert fit([*command, "--trainer.val_check_interval", "2", "--trainer.accelerator", "cpu"]) in (0, None)
    assert type(mm.load(tmp_path / "run" / "model")).__name__ == "OpenECAD"


def test_one_batch_can_be_learned(model):
    """And then the answers are that batch's programs: decoding reads what training wrote."""
    from mm.cad.module import CadModule

    module = CadModule(**SMALL, optimizer=OptimizerConfig(lr=3e-3))
    seeds = Split("test").seeds[:4]
    batch = PartRows(PartDataConfig(), module.model.processor)(seeds)
    optimizer = torch.optim.AdamW(module.parameters(), lr=5e-3)
    for _ in range(150):
        loss, _ = module.compute_loss(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05
    pictures = [draw(sample_part(seed).program)[..., None].repeat(3, axis=-1) for seed in seeds[1:4]]
    found = [candidates[0] for candidates in module.model.propose(pictures)]
    assert sum(one.text == text_of(seed) for one, seed in zip(found, seeds[1:4], strict=True)) >= 2
    assert all(one.confidence > 0.8 for one in found)


def test_an_untrained_model_writes_programs_under_the_grammar(model):
    """Only syntax is promised: a program may still have no solid."""
    pictures = [draw(sample_part(seed).program)[..., None].repeat(3, axis=-1) for seed in (1, 2)]
    for candidates in model.propose(pictures, samples=1, constrained=True, temperature=1.0):
        for candidate in candidates:
            assert parse(candidate.text).extrudes
    free = model.propose(pictures, max_new_tokens=24)
    with pytest.raises(ValueError, match=r"\["):
        parse(free[0][0].text)


def test_samples_follow_their_seed(model):
    picture = draw(sample_part(3).program)[..., None].repeat(3, axis=-1)
    once, again, other = (model.propose([picture], samples=2, seed=seed, max_new_tokens=12) for seed in (1, 1, 2))
    assert once == again != other


def test_agreement_knows_holes_and_silhouettes():
    plate, holed = (draw(parse(text).__class__(parse(text).extrudes)) for text in (PLATE, text_of(3)))
    assert agreement(plate, plate) == 1
    assert agreement(plate, holed) == agreement(holed, plate) < 0.95
    blank = np.full((SIZE, SIZE), 255, dtype=np.uint8)
    assert agreement(plate, blank) == 0 == agreement(blank, blank)


def test_the_candidate_that_explains_the_picture_wins():
    seeds = list(range(10, 18))
    for target in seeds[:3]:
        seen = draw(sample_part(target).program)
        wrong = [Candidate(text_of(seed), 0.9) for seed in seeds if seed != target]
        found = best([Candidate("no program", 1.0), *wrong, Candidate(text_of(target), 0.1)], seen)
        assert found.candidate.text == text_of(target)
        assert found.agreement == pytest.approx(1) and not found.uncertain
    broken = check(Candidate("Loops0=[", 1.0), seen)
    assert broken.agreement == 0 and broken.problem and broken.uncertain


def test_of_a_cut_answer_the_whole_extrudes_count():
    seed = next(s for s in range(100) if len(sample_part(s).program.extrudes) == 2)
    seen, text = draw(sample_part(seed).program), text_of(seed)
    whole, cut = check(Candidate(text, 1.0), seen), check(Candidate(text[:-60], 1.0), seen)
    assert len(cut.program.extrudes) == 1 and cut.problem and not whole.problem
    assert 0 < cut.agreement < whole.agreement
    nothing = check(Candidate(text[:60], 1.0), seen)
    assert nothing.program is None and nothing.problem


def test_generate_and_its_sheet(model, tmp_path):
    path = tmp_path / "part.png"
    Image.fromarray(render(build(sample_part(4, TINY).program, kernel="mesh", limits=None), size=200)).save(path)
    found = generate(model, path, samples=1)
    assert found.program is not None
    assert found.uncertain == (found.agreement < 0.75)
    compare_sheet(path, found, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (640, 320)
    Image.new("RGB", (40, 40), "white").save(path)
    with pytest.raises(ValueError, match="shows no part"):
        generate(model, path)


def test_the_data_module_takes_the_tokenizer_of_its_model(model):
    data = PartData(PartDataConfig(batch_size=2, held_out_batches=1))
    data.processor = model.processor
    data.setup("fit")
    (batch,) = list(data.val_dataloader())
    assert len(batch["input_ids"]) == 2
    assert (data.rows.config.noise, data.batch_size) == (4.0, 2)


# shipped weights ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained():
    return mm.load("openecad_tiny")


def other_things() -> dict[str, np.ndarray]:
    """Pictures without a part."""
    from PIL import ImageDraw

    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    page = Image.new("RGB", (200, 120), "white")
    for line in range(6):
        ImageDraw.Draw(page).text((10, 8 + 18 * line), "no part is drawn here, only words", fill="black")
    circles = Image.new("RGB", (128, 128), "white")
    for x in (20, 64, 108):
        ImageDraw.Draw(circles).ellipse((x - 12, x - 12, x + 12, x + 12), fill="darkgreen")
    grey = np.full((64, 64, 3), 128, dtype=np.uint8)
    return {"grey square": grey, "noise": noise, "text": np.asarray(page), "three dots": np.asarray(circles)}


@pytest.mark.parametrize("name", other_things())
def test_a_picture_without_a_part_gets_an_uncertain_answer(trained, name):
    found = generate(trained, other_things()[name], samples=1)
    assert found.uncertain, f"agreement {found.agreement:.2f}"


def test_parts_of_the_test_split_are_read_with_confidence(trained):
    seeds = Split("test").seeds[500:506]
    pictures = [draw(sample_part(seed).program)[..., None].repeat(3, axis=-1) for seed in seeds]
    found = [candidates[0] for candidates in trained.propose(pictures)]
    assert sum(one.text == text_of(seed) for one, seed in zip(found, seeds, strict=True)) >= 5
    assert not any(
        check(one, draw(sample_part(seed).program)).uncertain for one, seed in zip(found, seeds, strict=True)
    )
