"""Published files end to end: a synthetic release with the weights of the fixtures, its tokens, sound and errors."""

import numpy as np
import pytest
import torch

from mm.codecs.semanticodec import SemantiCodec, load_official
from mm.codecs.semanticodec.config import (
    AudioMaeConfig,
    DecoderConfig,
    DiffusionConfig,
    EncoderConfig,
    QuantizerConfig,
    SemantiCodecConfig,
    UNetConfig,
    VaeConfig,
    VocoderConfig,
    paper,
)
from mm.codecs.semanticodec.convert import encoder_state
from mm.codecs.semanticodec.convert_decoder import key_map
from mm.codecs.semanticodec.decoder import Sampling
from mm.codecs.semanticodec.schedule import schedule_tables
from mm.codecs.semanticodec.windows import cut_windows, official_length, overlap_add, window_ranges

REFERENCE = SemantiCodecConfig(
    encoder=EncoderConfig(audiomae=AudioMaeConfig(width=8, num_heads=2)),
    quantizer=QuantizerConfig(semantic_vocabs=(48,), acoustic_vocab=64),
    decoder=DecoderConfig(
        vae=VaeConfig(width=32, multipliers=(1, 2, 1), res_blocks=1),
        unet=UNetConfig(
            context_width=208, width=32, multipliers=(1, 2, 1), res_blocks=1, attention_factors=(4,), head_width=16
        ),
        diffusion=DiffusionConfig(schedule="linear", eta=0.0),
        vocoder=VocoderConfig(width=32),
        feature_width=16,
    ),
)
"""Sizes of the fixtures."""


@pytest.fixture(scope="module")
def release(parity, tmp_path_factory):
    """encoder.ckpt, decoder.ckpt and the codebook, in the layout of the publication."""
    folder = tmp_path_factory.mktemp("release")
    encoder = {**parity("audiomae").weights, **parity("encoder_k1").weights}
    encoder |= {
        "audiomae.model.mask_token": torch.randn(1, 1, 4),
        "audiomae.model.decoder_blocks.0.norm1.weight": torch.randn(4),
        "audiomae.model.decoder_pred.bias": torch.randn(4),
    }
    decoder = {
        key: value.float() for name in ("diffusion", "vae", "hifigan") for key, value in parity(name).weights.items()
    }
    decoder |= schedule_tables(decoder["betas"].double().numpy()) | {"logvar": torch.zeros(1000)}
    torch.save(encoder, folder / "encoder.ckpt")
    torch.save(decoder, folder / "decoder.ckpt")
    np.save(folder / "codebook_24_0.npy", parity("encoder_k1")["semantic_codebook"].numpy())
    return folder


def load(folder, **changes):
    options = {"token_rate": 100, "semantic_vocab": 48, "config": REFERENCE, **changes}
    return load_official(folder / "encoder.ckpt", folder / "decoder.ckpt", folder / "codebook_24_0.npy", **options)


@pytest.fixture(scope="module")
def codec(release):
    return load(release)[0]


def test_tokens_of_a_wave(codec, parity):
    data = parity("e2e")
    tiles = data["wave.tile_pattern"].repeat(1, 64)
    waves = {"main": data["wave"], "long": torch.cat([tiles[:, :160_000], data["wave"], tiles], 1)}
    for name, wave in waves.items():
        found = codec.encode(wave, 16_000, length_mode="official", channel="first")
        expected, margin = data[f"expected.tokens.{name}"], data[f"expected.margin.{name}"]
        assert found.shape == expected.shape
        sure = margin > 1e-3
        assert sure.float().mean() > 0.8
        assert torch.equal(found[sure], expected[sure])
        blocks = codec.encode_blocks(wave.split(50_000, dim=1), 16_000, length_mode="official", segments_at_once=1)
        assert torch.equal(torch.cat(list(blocks)), found[0])


def test_sound_of_tokens(codec, parity, relative_error):
    """Two windows from given noise, five DDIM steps, official joins."""
    data, decoder = parity("e2e"), codec.decoder
    tokens = data["decode.tokens"]
    ranges = window_ranges(tokens.shape[1], 512, 32)
    assert ranges == [(0, 512), (480, 617)]
    windows = cut_windows(codec.embed(tokens), ranges, 512)[0]
    start = torch.cat([data["decode.x_T"], data["decode.x_T"].flip(2)])
    with torch.inference_mode():
        latents = decoder.sample(windows, lambda: start, Sampling(steps=5, guidance=2.0, eta=0.0))
        mel = decoder.mel(latents)
        waves = decoder.wave(mel, trim=False)
    joined = overlap_add(waves, 10_240)[0, : official_length(617, 1)]
    rows = data["expected.decode.features.row_index"]
    for index in range(2):
        assert relative_error(windows[index, rows], data[f"expected.decode.features.window{index}"]) < 1e-5
        assert relative_error(latents[index : index + 1, :, ::4], data[f"expected.decode.latent.window{index}"]) < 1e-3
        assert relative_error(mel[index, 0, ::16], data[f"expected.decode.mel.window{index}"]) < 1e-3
        head = data[f"expected.decode.window_wave_head.window{index}"]
        assert relative_error(waves[index, 0, :1600], head) < 1e-3
    assert len(joined) == data["expected.decode.length"]
    for name, expected in data.items():
        if name.startswith("expected.decode.wave."):
            part = name.rpartition(".")[2]
            found = {"every_32nd": joined[::32], "last_1600": joined[-1600:]}.get(part)
            if found is None:
                first, end = map(int, part.split("_"))
                found = joined[first:end]
            assert relative_error(found, expected) < 1e-3, part


def test_saved_folder_holds_everything(codec, tmp_path, parity):
    loaded = SemantiCodec.from_pretrained(codec.save_pretrained(tmp_path / "codec"))
    assert loaded.config == codec.config
    ours, theirs = codec.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    wave = parity("e2e")["wave"]
    assert torch.equal(loaded.encode(wave, 16_000), codec.encode(wave, 16_000))
    assert loaded.fingerprint() == codec.fingerprint()


def test_every_tensor_is_accounted_for(release):
    _, report = load(release)
    stored = torch.load(release / "encoder.ckpt", weights_only=True)
    assert set(report.encoder.loaded) | set(report.encoder.left_out) == set(stored)
    assert sorted(report.encoder.left_out) == [
        "audiomae.model.decoder_blocks.0.norm1.weight",
        "audiomae.model.decoder_pred.bias",
        "audiomae.model.mask_token",
        "quantizer._codebook.initted",
    ]


@pytest.mark.parametrize(
    "file, change, message",
    [
        ("encoder.ckpt", lambda s: s.pop("encoder_output_linear.weight"), r"missing \(1\): acoustic.project.weight"),
        (
            "encoder.ckpt",
            lambda s: s.update({"encoder.new": torch.ones(1)}),
            "not part of the published layout: encoder.new",
        ),
        (
            "encoder.ckpt",
            lambda s: s.update({"audiomae.model.norm.bias": torch.ones(3)}),
            r"reshaped \(1\): audiomae.norm.bias",
        ),
        ("decoder.ckpt", lambda s: s.pop("scale_factor"), "scale_factor"),
        ("decoder.ckpt", lambda s: s.update({"first_stage_model.new": torch.ones(1)}), "first_stage_model.new"),
        ("decoder.ckpt", lambda s: s.clear(), "not a published decoder"),
    ],
)
def test_edited_files_are_refused_by_name(release, tmp_path, file, change, message):
    for path in release.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    state = torch.load(release / file, weights_only=True)
    change(state)
    torch.save(state, tmp_path / file)
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


def test_wrong_codebooks_and_broken_files_are_refused(release, tmp_path):
    for path in release.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match="contradicts"):
        load(release, semantic_vocab=64)
    np.save(tmp_path / "codebook_24_0.npy", np.zeros((24, 8), np.float32))
    with pytest.raises(ValueError, match=r"24 rows, semantic_vocab=48"):
        load(tmp_path)
    np.save(tmp_path / "codebook_24_0.npy", np.zeros((48, 16), np.float32))
    with pytest.raises(ValueError, match="has 8 columns"):
        load(tmp_path)
    (tmp_path / "codebook_24_0.npy").unlink()
    with pytest.raises(FileNotFoundError, match="codebook"):
        load(tmp_path)
    np.save(tmp_path / "codebook_24_0.npy", np.zeros((48, 8), np.float32))
    (tmp_path / "encoder.ckpt").write_bytes(b"PK garbage")
    with pytest.raises(ValueError, match="cannot be read as a plain state dict"):
        load(tmp_path)


@pytest.mark.parametrize("rate", [25, 50, 100])
def test_published_names_and_shapes(rate, layout):
    """All tensors of both published files, against our model of that size on the meta device."""
    base, own = layout["token_rate_100"], layout[f"token_rate_{rate}"]

    def shapes(part):
        found = dict(base[part])
        if rate != 100:
            found.update(own[part]["changed"])
            for name in own[part]["absent"]:
                found.pop(name)
        return {name: tuple(int(n) for n in size.split("x") if n != "scalar") for name, size in found.items()}

    with torch.device("meta"):
        codec = SemantiCodec(paper(rate))
        encoder, report = encoder_state({name: torch.empty(size) for name, size in shapes("encoder").items()})
    wanted = {name: value.shape for name, value in codec.encoder.state_dict().items() if "semantic." not in name}
    assert {name: value.shape for name, value in encoder.items()} == wanted
    assert len(report.loaded) + len(report.left_out) == layout["counts"][str(rate)]["encoder_keys"]
    names = key_map(codec.decoder)
    decoder = shapes("decoder")
    own = {names[key]: value.shape for key, value in codec.decoder.state_dict().items() if key in names}
    tables = set(schedule_tables(np.array([0.5]))) | {"logvar"}
    assert own == {name: size for name, size in decoder.items() if name not in tables}
    assert tables <= set(decoder)
