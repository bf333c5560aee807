"""Index and retrieval: what is stored, what a stopped run keeps, and how entries are ranked."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

pytest.importorskip("monai")

import mm
from mm.medical import load_volume
from mm.medical.command.index import stamp
from mm.medical.tasks import IndexBuilder, RetrievalConfig, ScanIndex, ScanItem
from mm.medical.tasks.cases import find_cases
from mm.medical.tasks.retrieval import as_query, fused, match_scores
from mm.medical.velvet.loss import level_similarity
from tests.medical.tasks.conftest import NAME


def items(folder: Path) -> list[ScanItem]:
    return [
        ScanItem(
            place=case.path.relative_to(folder).as_posix(),
            read=partial(load_volume, case.path),
            stamp=stamp(case),
            report=case.report(),
        )
        for case in find_cases(folder)
    ]


@pytest.fixture(scope="module")
def index(model, scans, tmp_path_factory) -> ScanIndex:
    folder = tmp_path_factory.mktemp("index")
    assert len(list(IndexBuilder(model, folder, items(scans), shard_items=2).run())) == 5
    return ScanIndex(folder)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_scores_are_those_of_the_model_at_every_level(model, index, scans):
    """Against vectors computed anew, one report at a time: padding, half precision and rows must not matter."""
    paths = [case.path for case in find_cases(scans)]
    for level in ("report", "sentence", "word"):
        hits = model.retrieve(paths[1], index, k=4, config=RetrievalConfig(levels=(level,)))
        ours = model.embed(paths[1])
        for hit in hits:
            with torch.no_grad():
                text = model.encode_text(**model.tokenize([hit.report])).embeddings
            expected = level_similarity(ours, text, level, model.config.local)[0, 0]
            assert hit.similarities[level] == pytest.approx(float(expected), rel=2e-3, abs=2e-3)
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert len(hits) == 4 and all(hit.report for hit in hits)  # the scan without a report is not found


def test_a_text_finds_scans_and_a_scan_finds_itself(model, index, scans):
    found = model.retrieve(
        "Pleural effusion on the left.", index, k=9, config=RetrievalConfig(levels=("report", "word"))
    )
    assert len(found) == 5 and any(not hit.report for hit in found)
    for row, case in enumerate(find_cases(scans)):
        hits = model.retrieve(case.path, index, k=2, config=RetrievalConfig(target="scans"))
        assert hits[0].row == row and hits[0].score == pytest.approx(1, abs=1e-3)


def test_fusion_over_standardised_levels_ignores_their_scales():
    scores = {"report": torch.tensor([0.1, 0.3, 0.2]), "word": torch.tensor([9.0, 1.0, 8.0])}
    louder = {**scores, "word": 100 * scores["word"] + 7}
    torch.testing.assert_close(fused(scores, "zscore"), fused(louder, "zscore"))
    assert fused(scores, "mean").argmax() == 0 and fused(scores, "zscore").argmax() == 2
    assert not torch.allclose(fused(scores, "mean"), fused(louder, "mean"))


def test_only_the_best_at_the_report_level_are_candidates(model, index, scans):
    path = find_cases(scans)[0].path
    coarse = [hit.row for hit in model.retrieve(path, index, k=2)]
    fine = model.retrieve(path, index, k=9, config=RetrievalConfig(levels=("word",), candidates=2))
    assert sorted(hit.row for hit in fine) == sorted(coarse)


def test_reranking_adds_the_match_logit_to_the_first_ones(model, index, scans):
    path = find_cases(scans)[0].path
    plain = model.retrieve(path, index, k=4)
    again = model.retrieve(path, index, k=4, config=RetrievalConfig(rerank=3))
    logits = match_scores(model, as_query(model, path), index, [hit.row for hit in plain[:3]])
    expected = sorted(
        ((hit.score + logit, hit.row) for hit, logit in zip(plain[:3], logits.tolist(), strict=True)), reverse=True
    )
    assert [hit.row for hit in again] == [row for _, row in expected] + [plain[3].row]
    assert "match" in again[0].similarities and "match" not in again[3].similarities
    text = model.retrieve("A cyst.", index, k=2, config=RetrievalConfig(rerank=2))
    assert all("match" in hit.similarities for hit in text)


def test_a_stopped_run_goes_on_and_gives_the_same_files(model, scans, tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    list(IndexBuilder(model, whole, items(scans), shard_items=2).run())
    run = IndexBuilder(model, stopped, items(scans), shard_items=2).run()
    for _ in range(3):  # one shard of two, and half of the next
        next(run)
    run.close()
    with pytest.raises(FileNotFoundError, match="no finished index"):
        ScanIndex(stopped)
    (stopped / ".features-000001.safetensors.x").mkdir()  # what a killed process leaves
    rest = IndexBuilder(model, stopped, items(scans), shard_items=2)
    assert len(rest) == 3 and len(list(rest.run())) == 3
    assert files(stopped) == files(whole)
    assert len(IndexBuilder(model, stopped, items(scans), shard_items=2)) == 0


def test_a_changed_scan_is_computed_anew_and_its_old_vectors_are_not_found(model, scans, tmp_path):
    list(IndexBuilder(model, tmp_path / "i", items(scans)).run())
    changed = items(scans)
    changed[0] = replace(changed[0], report="Normal spleen.")
    builder = IndexBuilder(model, tmp_path / "i", changed)
    assert len(builder) == 1
    list(builder.run())
    found = ScanIndex(tmp_path / "i")
    assert len(found) == 5 and [entry.report for entry in found.entries].count("Normal spleen.") == 1


def test_a_scan_that_cannot_be_used_is_named_and_left_out(model, scans, tmp_path):
    def broken():
        raise ValueError("the scan is cut off")

    some = [*items(scans)[:2], ScanItem(place="broken", read=broken, report="A cyst.")]
    told = list(IndexBuilder(model, tmp_path / "i", some).run())
    assert [bool(entry.error) for entry in told] == [False, False, True]
    found = ScanIndex(tmp_path / "i")
    assert len(found) == 2 and found.failed[0].error == "the scan is cut off"
    assert all(hit.key != some[2].key for hit in model.retrieve("A cyst.", found, k=9))


def test_the_index_holds_no_name_and_reports_are_scrubbed(model, scans, tmp_path):
    first = replace(items(scans)[0], report=f"Name: {NAME} Hovercraft\nThe liver is normal on 3/4/2021.")
    list(IndexBuilder(model, tmp_path / "i", [first]).run())
    assert not any(word in data for data in files(tmp_path / "i").values() for word in (b"Eelina", b"2021"))
    assert "REMOVED" in ScanIndex(tmp_path / "i").entries[0].report
    named = IndexBuilder(model, tmp_path / "named", [first], keep_names=True)
    assert next(iter(named.run())).place.startswith(NAME)


def test_other_weights_and_meaningless_questions_are_refused(model, index, scans, tmp_path):
    other = mm.create_model("velvet_tiny", seed=1)
    with pytest.raises(ValueError, match="made by other weights"):
        other.retrieve("A cyst.", index)
    with pytest.raises(ValueError, match="computed with something else"):
        IndexBuilder(other, index.folder, items(scans))
    for query, config, match in (
        ("A cyst.", {"target": "reports"}, "compared with scans"),
        (find_cases(scans)[0].path, {"target": "scans", "levels": ("word",)}, "report level alone"),
        ("  ", {}, "query is empty"),
    ):
        with pytest.raises(ValueError, match=match):
            model.retrieve(query, index, config=RetrievalConfig(**config))
    with pytest.raises(ValueError, match="each once"):
        RetrievalConfig(levels=("report", "report"))
    bare = tmp_path / "bare"
    list(IndexBuilder(model, bare, [replace(item, report="") for item in items(scans)[:1]]).run())
    with pytest.raises(ValueError, match="holds no reports"):
        model.retrieve(find_cases(scans)[0].path, bare)
    shutil.rmtree(bare)
