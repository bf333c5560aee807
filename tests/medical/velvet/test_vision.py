"""The vision encoder: MONAI's keys and numbers, both patch mergings, published sizes."""

from __future__ import annotations

import pytest
import torch

from mm.medical.velvet.config import VelvetConfig, VisionConfig
from mm.medical.velvet.convert import load_into_swin_unetr, load_swin_weights
from mm.medical.velvet.vision import VisionEncoder, build_swin, legacy_merging
from tests.medical.velvet.conftest import small_vision

nets = pytest.importorskip("monai.networks.nets.swin_unetr")


def encoder(**changes) -> VisionEncoder:
    torch.manual_seed(0)
    return VisionEncoder(small_vision(**changes)).eval()


def test_keys_and_numbers_are_those_of_monai():
    ours = encoder(attention="fused", embed_dim=12, num_heads=(2, 2, 2, 2), depths=(2, 1, 1, 1), window_size=4)
    plain = build_swin(ours.config).eval()
    plain.load_state_dict(ours.swin.state_dict(), strict=True)
    volume = torch.rand(1, 1, 36, 32, 30, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for a, b in zip(ours(volume), plain(volume), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_auto_takes_the_faster_attention():
    assert not small_vision(window_size=3).fused and small_vision(window_size=7).fused
    assert small_vision(window_size=3, attention="fused").fused


def test_grids_and_normalisation():
    found = encoder().features(torch.rand(2, 1, 32, 32, 32))
    assert found.word.shape[2:] == (4, 4, 4) and found.sentence.shape[2:] == (2, 2, 2)
    assert found.report.shape == (2, 96, 1, 1, 1)
    assert found.regions("word").shape == (2, 64, 24)
    for level in ("report", "sentence", "word"):
        regions = found.regions(level)
        torch.testing.assert_close(regions.mean(-1), torch.zeros_like(regions[..., 0]), atol=1e-5, rtol=0)


def test_a_volume_without_channel_is_refused():
    with pytest.raises(ValueError, match=r"volume\[None, None\]"):
        encoder()(torch.rand(32, 32, 32))


def test_round_trip_through_swin_unetr():
    ours = encoder(embed_dim=12)
    network = nets.SwinUNETR(
        in_channels=1, out_channels=3, depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 2), window_size=3, feature_size=12
    )
    report = load_into_swin_unetr(network, ours)
    assert report.loaded == len(ours.swin.state_dict()) and "encoder1" in report.new
    assert ours.swin.state_dict().keys() == network.swinViT.state_dict().keys()
    back = encoder(embed_dim=12)
    with torch.no_grad():
        for parameter in back.parameters():
            parameter.zero_()
    taken = load_swin_weights(back, network.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(back.state_dict().values(), ours.state_dict().values(), strict=True))
    assert taken.ignored and all(not key.startswith("swinViT.") for key in taken.ignored)
    with pytest.raises(ValueError, match="has no swinViT"):
        load_into_swin_unetr(torch.nn.Linear(1, 1), ours)


def test_another_size_is_refused_with_the_shapes():
    with pytest.raises(ValueError, match="reshaped"):
        load_swin_weights(encoder(embed_dim=12), encoder().swin.state_dict())


def test_legacy_merging_differs_except_inside_constant_blocks():
    torch.manual_seed(0)
    new, old = nets.PatchMerging(4), legacy_merging()(4)
    old.load_state_dict(new.state_dict(), strict=True)
    x = torch.randn(1, 4, 6, 5, 4)
    assert new(x).shape == old(x).shape == (1, 2, 3, 3, 8)
    assert not torch.allclose(new(x), old(x))
    blocks = torch.randn(1, 2, 3, 2, 4).repeat_interleave(2, 1).repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(new(blocks), old(blocks))


def test_legacy_merging_takes_the_corners_of_old_versions():
    merging = legacy_merging()(1)
    corners = torch.arange(8.0).view(1, 2, 2, 2, 1)  # 4 i + 2 j + k
    merging.norm, merging.reduction = torch.nn.Identity(), torch.nn.Identity()
    assert merging(corners).flatten().tolist() == [0, 4, 2, 1, 5, 2, 1, 7]


def nvidia_file(plain):
    """The layout of NVIDIA's file: prefix, fc names, a last norm and heads."""
    renamed = {key.replace("linear1", "fc1").replace("linear2", "fc2"): value for key, value in plain.items()}
    renamed = {f"module.{key}": value for key, value in renamed.items() if "relative_position_index" not in key}
    extra = {"module.norm.weight": torch.ones(48), "module.rotation_head.weight": torch.ones(4, 96)}
    return {"state_dict": renamed | extra}


def test_nvidia_file(tmp_path):
    source = encoder(merging="legacy").swin.state_dict()
    torch.save(nvidia_file(source), tmp_path / "model_swinvit.pt")
    torch.manual_seed(5)
    target = VisionEncoder(small_vision(merging="legacy"))
    report = load_swin_weights(target, tmp_path / "model_swinvit.pt")
    assert set(report.ignored) == {"norm.weight", "rotation_head.weight"} and not report.notes
    assert all(torch.equal(value, source[key]) for key, value in target.swin.state_dict().items())
    warned = load_swin_weights(encoder(), tmp_path / "model_swinvit.pt")
    assert "merging='legacy'" in str(warned)
    broken = nvidia_file(source)
    broken["state_dict"]["module.surprise"] = torch.ones(1)
    torch.save(broken, tmp_path / "broken.pt")
    with pytest.raises(ValueError, match=r"unexpected \(1\): surprise"):
        load_swin_weights(target, tmp_path / "broken.pt")


def test_a_file_that_would_run_code_is_refused(tmp_path):
    torch.save({"state_dict": {"a": torch.nn.Linear(1, 1)}}, tmp_path / "object.pt")
    with pytest.raises(ValueError, match="not readable as plain tensors"):
        load_swin_weights(encoder(), tmp_path / "object.pt")
    (tmp_path / "cut.pt").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(ValueError, match="not readable as plain tensors"):
        load_swin_weights(encoder(), tmp_path / "cut.pt")


@pytest.mark.parametrize(("size", "millions"), [("Tv", 8.06), ("Sv", 22.85), ("Bv", 88.24)])
def test_published_sizes(monkeypatch, size, millions):
    config: VisionConfig = VelvetConfig.preset(size).vision
    linspace = torch.linspace  # MONAI reads the numbers of one back while it builds
    monkeypatch.setattr(torch, "linspace", lambda *args: linspace(*args, device="cpu"))
    with torch.device("meta"):
        swin = VisionEncoder(config)
    assert sum(p.numel() for p in swin.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)
    assert config.widths[4] == 16 * config.embed_dim
