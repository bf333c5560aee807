"""The tokenizer: its two transformers against timm, codes and features, teachers, published layout, training."""

import argparse

import pytest
import torch

from mm.codecs import SemanticVQTokenizer
from mm.codecs.semantic_vq import CosineQuantizerConfig, SemanticVQConfig, ViTConfig, as_teacher, load_vqkd, tiny
from mm.codecs.semantic_vq.data import OracleRows, OracleSceneConfig, oracle_features
from mm.codecs.semantic_vq.loss import cosine_distance
from mm.codecs.semantic_vq.module import SemanticVQModule
from mm.codecs.semantic_vq.presets import semantic_vq_base, semantic_vq_tiny
from mm.codecs.semantic_vq.teacher import tower_teacher
from mm.data import Split
from mm.vision import ImagePreprocessing, TowerConfig

SMALL = SemanticVQConfig(
    image_size=32,
    patch_size=8,
    encoder=ViTConfig(width=64, depth=2, num_heads=1),
    decoder=ViTConfig(width=64, depth=1, num_heads=1),
    quantizer=CosineQuantizerConfig(size=32, width=8),
    target_width=16,
)


@pytest.fixture
def tok():
    return SemanticVQTokenizer(SMALL, seed=1).eval()


@pytest.fixture
def frames():
    return torch.rand(2, 3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_the_encoder_is_timms_transformer_with_the_same_weights(tok, frames):
    import timm

    theirs = timm.create_model(
        "vit_base_patch16_224",
        img_size=32,
        patch_size=8,
        embed_dim=64,
        depth=2,
        num_heads=1,
        num_classes=0,
        global_pool="avg",
    ).eval()
    state = {}
    for key, value in tok.encoder.state_dict().items():
        if key.endswith("q_bias"):
            v_bias = tok.encoder.state_dict()[key.replace("q_bias", "v_bias")]
            state[key.replace("q_bias", "qkv.bias")] = torch.cat([value, torch.zeros_like(value), v_bias])
        elif not key.endswith("v_bias"):
            state[key] = value
    theirs.load_state_dict(state)
    pixels = frames.flatten(0, 1)
    expected = theirs.fc_norm(theirs.forward_features(2 * pixels - 1)[:, 1:])
    torch.testing.assert_close(tok.encoder(2 * pixels - 1), expected, rtol=1e-4, atol=1e-5)


def test_codes_are_row_major_and_frames_are_independent(tok, frames):
    codes = tok.encode(frames)
    assert codes.shape == (2, 3, 4, 4) and codes.dtype == torch.int64
    assert torch.equal(tok.encode(frames[1, 2:]), codes[1, 2:])
    assert torch.equal(tok.encode(frames), tok(frames).codes)
    vectors = torch.nn.functional.normalize(tok.latents(frames), dim=-1).reshape(2, 3, 4, 4, 8)
    assert torch.equal((vectors @ tok.quantizer.codebook.T).argmax(-1), codes)


def test_decoding_the_codes_equals_the_forward_pass(tok, frames):
    found = tok(frames)
    torch.testing.assert_close(tok.decode_features(found.codes), found.features, rtol=1e-4, atol=1e-5)
    other = tok.decode_features(found.codes.flip(-1))
    assert (other - found.features).abs().max() > 1e-3


def test_encoding_in_training_mode_changes_nothing(tok, frames):
    before = {key: value.clone() for key, value in tok.train().state_dict().items()}
    tok.encode(frames)
    assert all(torch.equal(value, before[key]) for key, value in tok.state_dict().items())


def test_bytes_and_floats_give_one_result_and_other_ranges_are_refused(tok, frames):
    pixels = (255 * frames).round().to(torch.uint8)
    assert torch.equal(tok.encode(pixels), tok.encode(pixels.float() / 255))
    dark = 0.1 * frames  # a guess of the range from the largest value would rescale it
    assert not torch.equal(tok.latents(dark), tok.latents(dark / dark.max()))
    with pytest.raises(ValueError, match=r"must lie in 0\.\.1"):
        tok.encode(2 * frames - 1)
    with pytest.raises(ValueError, match=r"\(\.\.\., 3, 32, 32\)"):
        tok.encode(frames[..., :24])
    with pytest.raises(ValueError, match=r"\(\.\.\., 4, 4\)"):
        tok.decode_features(torch.zeros(2, 16, dtype=torch.int64))


def test_no_frames_give_no_codes(tok, frames):
    assert tok.encode(frames[:0]).shape == (0, 3, 4, 4)


def test_usage_counts_codes(tok):
    assert tok.usage_of(torch.zeros(9, dtype=torch.int64)) == (1 / 32, 1.0)
    used, perplexity = tok.usage_of(torch.arange(16).repeat(2))
    assert used == 0.5 and perplexity == pytest.approx(16)
    assert tok.usage.used == 0
    tok.quantizer.cluster_size[:8] = 2.0
    assert tok.usage.used == 0.25 and tok.usage.perplexity == pytest.approx(8)


def test_published_sizes_have_the_published_parameter_counts():
    with torch.device("meta"):
        encoder, decoders = ViTConfig(), [ViTConfig(depth=1), ViTConfig(depth=3)]
        from mm.codecs.semantic_vq.vit import PatchTransformer

        count = lambda module: sum(p.numel() for p in module.parameters()) / 1e6  # noqa: E731
        assert count(PatchTransformer(encoder, channels=3, patch_size=16, side=14)) == pytest.approx(85.8, abs=0.05)
        found = [count(PatchTransformer(size, channels=32, patch_size=1, side=14)) for size in decoders]
        assert found == pytest.approx([7.3, 21.4], abs=0.1)


def published(tok):
    """The layout of the published files, made from our tensors."""
    state = {key: value for key, value in tok.state_dict().items() if not key.startswith(("quantizer.", "target_mean"))}
    size, width = tok.quantizer.codebook.shape
    return state | {
        "quantize.embedding.weight": tok.quantizer.codebook,
        "quantize.embedding.cluster_size": torch.zeros(size),
        "quantize.embedding.embed_avg": torch.zeros(size, width),
        "quantize.embedding.initted": torch.ones(1),
        "quantize.cluster_size": torch.arange(size).float(),
        "teacher_model.visual.proj": torch.zeros(2, 2),
        "scaling_layer.shift": torch.zeros(1, 3, 1, 1),
    }


@pytest.mark.parametrize("wrapped", ["model", "state_dict", None])
def test_published_files_load_with_a_report(tok, frames, tmp_path, wrapped):
    state = published(tok)
    path = tmp_path / "vqkd_encoder_base_decoder_1x768x12_dino-0.pth"
    torch.save({wrapped: state, "args": argparse.Namespace(lr=1)} if wrapped else state, path)
    found, report = load_vqkd(path)
    assert torch.equal(found.encode(frames), tok.encode(frames))
    torch.testing.assert_close(found(frames).features, tok(frames).features)
    assert found.config.teacher == "dino ViT-B/16" and found.quantizer.started
    assert set(report.loaded) | set(report.left_out) == set(state)
    assert set(report.left_out) == {
        key for key in state if "embedding." in key or "_model" in key or "_layer." in key
    } - ({"quantize.embedding.weight"} | {key for key in state if "code_task_layer" in key})


def test_other_files_are_refused_by_name(tok, tmp_path):
    state = published(tok)
    for change, message in (
        ({"encoder.rel_pos": torch.zeros(1)}, r"not part of the published layout: encoder\.rel_pos"),
        ({"encoder.blocks.1.norm1.weight": None}, r"missing \(1\): encoder\.blocks\.1\.norm1\.weight"),
        ({"quantize.embedding.weight": None}, r"lacks quantizer\.codebook"),
    ):
        changed = {key: value for key, value in (state | change).items() if value is not None}
        torch.save(changed, tmp_path / "x.pth")
        with pytest.raises(ValueError, match=message):
            load_vqkd(tmp_path / "x.pth")
    (tmp_path / "x.pth").write_bytes(b"no")
    with pytest.raises(ValueError, match="plain state dict"):
        load_vqkd(tmp_path / "x.pth")


@pytest.mark.parametrize("library, name", [("timm", "vit_tiny_patch16_224"), ("open_clip", "ViT-B-16-quickgelu")])
def test_tower_teachers_normalise_and_project(library, name):
    options = {"embed_dim": 32, "depth": 2, "num_heads": 2} if library == "timm" else {"width": 32, "layers": 2}
    options |= {"patch_size": 8} | ({"head_width": 16} if library == "open_clip" else {})
    config = TowerConfig(
        library=library,
        name=name,
        options=options,
        layer=-1,
        final_norm=True,
        preprocessing=ImagePreprocessing(size=32),
    )
    teacher = tower_teacher(config, None)
    frames = torch.rand(2, 3, 32, 32)
    module = teacher.tower.module
    mean, std = (torch.tensor(getattr(config.preprocessing, key))[:, None, None] for key in ("mean", "std"))
    pixels = (frames - mean) / std
    if library == "timm":
        expected = module.forward_features(pixels)[:, 1:]
    else:
        hidden = module.transformer(module._embeds(pixels))
        expected = module.ln_post(hidden)[:, 1:] @ module.proj
    torch.testing.assert_close(teacher.train()(frames), expected, rtol=1e-4, atol=1e-5)
    assert teacher.width == expected.shape[-1]
    assert not teacher(frames).requires_grad and not any(module.training for module in teacher.modules())
    assert teacher(torch.rand(2, 3, 48, 48)).shape == expected.shape, "frames are resized to the tower's side"


def test_any_function_teaches_and_must_keep_its_word():
    teacher = as_teacher(lambda frames: frames.flatten(2).mean(1)[:, :16, None].expand(-1, -1, 4), width=4)
    assert teacher(torch.rand(2, 3, 8, 8)).shape == (2, 16, 4)
    with pytest.raises(ValueError, match="needs width"):
        as_teacher(lambda frames: frames)
    with pytest.raises(ValueError, match=r"\(2, N, 4\), got \(2, 3\)"):
        as_teacher(lambda frames: frames[:, :, 0, 0], width=4)(torch.rand(2, 3, 8, 8))
    with pytest.raises(ValueError, match="layer=-1"):
        tower_teacher(TowerConfig(layer=-2, final_norm=True), None)


def test_the_oracle_sees_classes_and_no_texture():
    seeds = Split("train").seeds[:4]
    rows = OracleRows(OracleSceneConfig())(seeds)
    assert rows["pictures"].shape == (4, 3, 64, 64) and rows["targets"].shape == (4, 64, 32)
    torch.testing.assert_close(rows["targets"].norm(dim=-1), torch.ones(4, 64))
    pairs = rows["colour"] * 100 + rows["shape"]
    same = (pairs.flatten()[:, None] == pairs.flatten()[None]).float()
    cosine = rows["targets"].flatten(0, 1) @ rows["targets"].flatten(0, 1).T
    assert torch.equal((cosine > 1 - 1e-5).float(), same)
    assert torch.equal(oracle_features(rows["colour"], rows["shape"], 32), rows["targets"])


def test_training_turns_towards_the_teacher(tok, tmp_path):
    """Four kinds of patches; a decoder that ignores the codes stays at the cosine of the mean target."""
    tok.save_pretrained(tmp_path / "start")
    module = SemanticVQModule(str(tmp_path / "start"))
    generator = torch.Generator().manual_seed(0)
    kinds = torch.randint(4, (16, 4, 4), generator=generator)
    colours, meanings = torch.rand(4, 3, generator=generator), torch.randn(4, 16, generator=generator)
    pictures = colours[kinds].permute(0, 3, 1, 2).repeat_interleave(8, 2).repeat_interleave(8, 3)
    batch = {"pictures": pictures, "targets": meanings[kinds.flatten(1)]}
    optimizer = torch.optim.AdamW(module.parameters(), lr=2e-3)
    for _ in range(60):
        loss, logs = module.compute_loss(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    mean = batch["targets"].mean((0, 1)).expand_as(batch["targets"])
    assert logs["cosine"] > 1 - cosine_distance(mean, batch["targets"]) + 0.15
    assert logs["code_usage"] >= 4 / 32 and logs["code_perplexity"] > 2
    model = module.model.eval()
    other = model.decode_features(model.encode(pictures).roll(1, 0))
    assert 1 - cosine_distance(other, batch["targets"]) < logs["cosine"] - 0.15, "the features must come from the codes"


def test_the_module_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="has no effect without teacher"):
        SemanticVQModule(teacher_weights="openai")
    with pytest.raises(ValueError, match="no `targets`"):
        SemanticVQModule().compute_loss({"pictures": torch.rand(1, 3, 64, 64)})
    options = {"embed_dim": 16, "depth": 1, "num_heads": 1, "patch_size": 8}
    config = TowerConfig(
        name="vit_tiny_patch16_224",
        options=options,
        layer=-1,
        final_norm=True,
        preprocessing=ImagePreprocessing(size=64),
    )
    with pytest.raises(ValueError, match="16 channels, the tokenizer rebuilds 32"):
        SemanticVQModule(teacher=config)


def test_presets():
    assert semantic_vq_tiny(target_width=8).config.target_width == 8
    assert semantic_vq_tiny(seed=1).encoder.cls_token.ne(semantic_vq_tiny(seed=2).encoder.cls_token).any()
    with torch.device("meta"):
        assert semantic_vq_base.__name__ and tiny().side == 8
