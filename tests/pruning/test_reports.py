"""Contract for engines, FLOPs, keep map, evaluation table and the command."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from mm.cli import main
from mm.pruning import FastV, FlowCut, UniformGrid, VisionZip
from mm.pruning.contract import embedding_flow, retained_count, retention, retentions
from mm.pruning.cost import block_flops
from mm.pruning.evaluate import average_over_budgets, evaluate_methods, kept_share_of
from mm.pruning.flops import CLIP_L, EncoderShape, encoder_flops, rows
from mm.pruning.keep_map import keep_map, kept_by_block
from mm.pruning.methods import METHODS, make_pruner, read_options


@torch.no_grad()
def test_contract_of_a_selecting_method(tiny):
    tower, pixel_values = tiny.clip(), tiny.pictures(2)
    pruner = FlowCut(target_tokens=16)
    pruned = pruner.encode(tower, pixel_values)
    full = FlowCut(target_tokens=144).encode(tower, pixel_values).tokens
    for row, kept in enumerate(retentions(pruner, pruned)):
        assert kept.count == retained_count(144, 16) == int(kept.keep.sum())
        assert torch.equal(kept.keep.nonzero()[:, 0], pruned.keep_indices[row])
        by_scores = retention(full[row], 16, pruned.scores[row])
        assert by_scores.count == 16 and by_scores.keep.shape == (144,)


def test_contract_is_pure_and_exact():
    embeddings = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    before = embeddings.clone()
    found = retention(embeddings, 7)
    assert int(found.keep.sum()) == found.count == 7 and torch.equal(embeddings, before)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    assert torch.equal(retention(embeddings[order], 7).keep, found.keep[order])
    scale = embedding_flow(embeddings.half().float() * 1.0)
    assert scale.shape == (40,) and bool((scale > 0).all())
    assert retention(embeddings, 99).count == 40


def test_contract_refuses(tiny):
    with pytest.raises(ValueError, match=r"scores must be \(4,\)"):
        retention(torch.zeros(4, 2), 2, torch.zeros(3))
    with pytest.raises(ValueError, match="not finite"):
        retention(torch.zeros(4, 2), 2, torch.full((4,), torch.nan))
    with pytest.raises(ValueError, match="target must be a whole number"):
        retained_count(10, 0)
    with torch.no_grad():
        merged = VisionZip(target_tokens=9).encode(tiny.clip(), tiny.pictures(1))
    with pytest.raises(ValueError, match="appends merged tokens"):
        retentions(VisionZip(target_tokens=9), merged)
    with pytest.raises(ValueError, match="decides inside the language model"):
        retentions(FastV(), merged)


def test_published_tera_flops():
    """Within 3 % of the published four, with the three inferred numbers that the module names."""
    table = {row["setting"]: row for row in rows()}
    for row in table.values():
        if "published_tflop" in row and "SparseVLM" not in row["setting"]:
            assert abs(row["ours_tflop"] / row["published_tflop"] - 1) < 0.03, row
    assert round(CLIP_L.full_flops() / 1e12, 3) == 0.381
    # relative encoder cost of the published schedule table
    for target, ratio, share in ((64, 1.0, 0.92), (64, 0.9, 0.72), (64, 0.8, 0.60), (192, 0.9, 0.78)):
        assert round(encoder_flops(target, ratio) / CLIP_L.full_flops(), 2) == pytest.approx(share, abs=0.006)


def test_flops_agree_with_a_counted_encoder(tiny):
    """The closed form against PyTorch's own counter on the meta device."""
    from mm.metrics.flops import count_flops

    with torch.device("meta"):
        from transformers import CLIPVisionConfig, CLIPVisionModel

        shape = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}
        tower = CLIPVisionModel(CLIPVisionConfig(**shape, image_size=32, patch_size=8))
        hidden = torch.empty(1, 17, 32)
        counted = count_flops(lambda: [block(hidden, attention_mask=None) for block in tower.encoder.layers])
    assert counted == EncoderShape(depth=3, width=32, patches=16).full_flops()
    assert counted == 3 * block_flops(tower.encoder.layers[0], 17, 32)


@torch.no_grad()
def test_keep_map_shows_what_was_kept(tiny):
    pruned = FlowCut(target_tokens=16, interval=1).encode(tiny.clip(), tiny.pictures(1))
    stages = kept_by_block(pruned.last_block[0], 5)
    assert [int(mask.sum()) for _, mask in stages] == sorted(set(pruned.tokens_per_layer[0].tolist()), reverse=True)
    picture = keep_map(Image.new("RGB", (48, 48), "white"), pruned.last_block[0], 5, (12, 12))
    across = min(4, len(stages))
    panel = picture.width // across
    last = len(stages) - 1
    left, top = last % across * panel, last // across * (picture.height // -(-len(stages) // across))
    for index in range(144):
        y, x = index // 12 * panel // 12 + panel // 24, index % 12 * panel // 12 + panel // 24
        assert (picture.getpixel((left + x, top + y))[0] > 200) == (index in pruned.keep_indices[0].tolist())
    with pytest.raises(ValueError, match="a grid of 3 x 4 does not hold the 144 tokens"):
        keep_map(Image.new("RGB", (48, 48)), pruned.last_block[0], 5, (3, 4))


def test_recall_of_what_matters():
    mask = torch.tensor([[True, True, False, False], [False] * 4])
    assert kept_share_of(mask, torch.tensor([[0, 3], [1, -1]])).tolist() == [0.5, 1.0]


def test_methods_by_name():
    assert isinstance(make_pruner("uniform", 4), UniformGrid)
    assert make_pruner("flowcut", 4, read_options(["interval=3", "schedule=last"])) == FlowCut(
        target_tokens=4, interval=3, schedule="last"
    )
    with pytest.raises(ValueError, match="unknown method 'flowcat'; there are flowcut"):
        make_pruner("flowcat", 4)
    with pytest.raises(ValueError, match="FlowCut has no key 'intervall'; did you mean 'interval'"):
        make_pruner("flowcut", 4, {"intervall": 1})
    with pytest.raises(ValueError, match="takes NAME=VALUE"):
        read_options(["interval"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the random tiny host: same shape as the shipped demonstration, knows nothing."""
    from mm.zoo.presets import llava_tiny

    path = tmp_path_factory.mktemp("models") / "host"
    llava_tiny().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "photo.png"
    Image.effect_noise((80, 64), 90).convert("RGB").save(path)
    return path


def test_command(folder, picture, tmp_path, capsys):
    kept = tmp_path / "kept.png"
    words = ["prune", str(picture), "--model", str(folder), "--prompt", "what is this ?", "--target", "16"]
    assert main([*words, "--map", str(kept), "--option", "schedule=uniform", "--json", "--max-new-tokens", "2"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["visual_tokens"] == 16 and result["unpruned"]["visual_tokens"] == 64
    assert result["tflop"] < result["unpruned"]["tflop"] and result["flop_ratio"] < 1
    assert Image.open(kept).width >= 2 * 240
    assert main(["prune", "compare", *words[1:], "--json", "--max-new-tokens", "2"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert [row["method"] for row in table] == ["unpruned", *METHODS]
    assert all(row["per_block"] < 64 for row in table[1:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--target", "0"], "target_tokens must be a whole number of at least 1, got 0"),
        (["--method", "flowcat"], "unknown method 'flowcat'"),
        (["--option", "ema=2"], "ema must lie in 0..1"),
        (["--prompt", " "], "--prompt is empty"),
        (["--model", "no_such_model"], "no_such_model"),
    ],
)
def test_command_refuses_in_one_line(folder, picture, capsys, change, message):
    words = ["prune", str(picture), "--model", str(folder), "--prompt", "what is this ?", *change]
    assert main(words) == 1
    assert message in capsys.readouterr().err


def test_evaluation_table(folder):
    from mm.vlm import VisionLanguageModel
    from mm.zoo.evaluate import held_out_scenes

    model = VisionLanguageModel.from_pretrained(folder).eval()
    samples = [held_out_scenes(seed, 3) for seed in range(2)]
    table = evaluate_methods(model, samples, methods=("flowcut", "fastv"), budgets=(0.5, 1.0), max_new_tokens=1)
    assert [(row["method"], row["tokens"]) for row in table] == [
        ("unpruned", 64), ("flowcut", 32), ("fastv", 32), ("flowcut", 64), ("fastv", 64),
    ]  # fmt: skip
    assert table[3]["accuracy"] == table[0]["accuracy"]
    assert {row["method"] for row in average_over_budgets(table)} == {"flowcut", "fastv"}
    with pytest.raises(ValueError, match="budgets are shares"):
        evaluate_methods(model, samples, budgets=(0.0,))
    with pytest.raises(ValueError, match="at least one sample"):
        evaluate_methods(model, [[]])
