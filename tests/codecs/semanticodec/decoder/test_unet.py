"""The T-UNet against the reference, and what its condition and its cache mean."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from einops import rearrange

from mm.codecs.semanticodec.config import UNetConfig
from mm.codecs.semanticodec.ddim import ddim
from mm.codecs.semanticodec.decoder import Sampling
from mm.codecs.semanticodec.decoder_parts import position_code
from mm.codecs.semanticodec.unet import Transformer, UNet, timestep_code


def test_the_condition_is_features_then_position(reference, parity, close):
    fixture = parity("diffusion")
    code = position_code(fixture["features"].shape[1], 192).expand(2, -1, -1)
    close(torch.cat([fixture["features"], code], dim=-1), fixture["expected.condition"])
    assert torch.equal(reference.position[:24], code[0])


@torch.no_grad()
def test_outputs_equal_the_reference(reference, parity, close):
    fixture, unet = parity("diffusion"), reference.unet
    x, t = fixture["x_T"], fixture["t"]
    context = unet.read_context(fixture["expected.condition"])
    close(unet(x, t, context), fixture["expected.v_cond"])
    close(unet(0.001 * x, t, context), fixture["expected.v_small_input"])
    close(unet(x, t, unet.read_context(fixture["expected.condition_uncond"])), fixture["expected.v_uncond"])


@torch.no_grad()
def test_hidden_activations_equal_the_reference(reference, parity, close):
    fixture, unet = parity("diffusion"), reference.unet
    close(timestep_code(fixture["t"], 32), fixture["expected.hidden.time_sinusoid"])
    seen, handles = {}, []
    places = {f"input_blocks.{i}": unet.inputs[i] for i in (0, 1, 3, 5)}
    places |= {f"output_blocks.{i}": unet.outputs[i] for i in (0, 1, 3, 5)}
    places |= {"middle_block": unet.middle, "time_embed": unet.time_out}
    for name, module in places.items():
        handles.append(module.register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: out})))
    unet(fixture["x_T"], fixture["t"], unet.read_context(fixture["expected.condition"]))
    for handle in handles:
        handle.remove()
    assert set(seen) == set(places)
    for name, found in seen.items():
        expected = fixture[f"expected.hidden.{name}"]
        close(found[: len(expected)], expected)


@pytest.mark.parametrize("guidance", [1.0, 2.0, 3.5])
@torch.no_grad()
def test_guided_values_equal_the_reference(guidance, reference, parity, close):
    fixture = parity("diffusion")
    denoise = denoiser_of(reference, fixture, guidance)
    close(denoise(fixture["x_T"], fixture["t"]), fixture[f"expected.v_guided.w{guidance}"])


@pytest.mark.parametrize("run", ["w1.0.eta0.0", "w2.0.eta0.0", "w2.0.eta1.0", "w3.5.eta0.0"])
@torch.no_grad()
def test_whole_loops_equal_the_reference(run, reference, parity, close):
    fixture = parity("diffusion")
    guidance, eta = (float(part.strip("weta")) for part in run.rsplit(".eta", 1))
    noises, seen = iter(fixture["noise.S5"]), []
    found = ddim(
        denoiser_of(reference, fixture, guidance),
        fixture["x_T"],
        reference.schedule,
        steps=5,
        eta=eta,
        noise=lambda: next(noises),
        on_step=lambda x, x0: seen.append((x, x0)),
    )
    close(found, fixture[f"expected.loop.S5.{run}.final"], 1e-4)
    if f"expected.loop.S5.{run}.x_prev" in fixture:
        close(torch.stack([x for x, _ in seen]), fixture[f"expected.loop.S5.{run}.x_prev"], 1e-4)
        close(torch.stack([x0 for _, x0 in seen]), fixture[f"expected.loop.S5.{run}.pred_x0"], 1e-4)


def denoiser_of(reference, fixture, guidance):
    """The decoder's own guidance over the fixture's 24 positions (a window of it has 512)."""
    whole, reference.position = reference.position, reference.position[: fixture["features"].shape[1]]
    try:
        return reference.denoiser(fixture["features"], guidance)
    finally:
        reference.position = whole


@torch.no_grad()
def test_guidance_of_one_and_zero_is_one_call_and_equals_the_halves(small):
    features = torch.randn(2, 8, 12, generator=torch.Generator().manual_seed(0))
    x = torch.randn(2, 8, 8, 4, generator=torch.Generator().manual_seed(1))
    t, rows = torch.tensor([5, 700]), []
    for part in (small.unet.inputs[0], small.unet.conv_out):
        part.register_forward_hook(lambda _m, _x, out: rows.append(len(out)))
    conditional, unconditional = (small.denoiser(features, w)(x, t) for w in (1.0, 0.0))
    both = small.denoiser(features, 3.0)(x, t)
    assert rows == [2, 2, 2, 2, 2, 4], "both branches share what comes before the condition is read"
    torch.testing.assert_close(both, unconditional + 3 * (conditional - unconditional), rtol=1e-4, atol=1e-5)
    zeros = small.denoiser(torch.zeros_like(features), 1.0)(x, t)
    assert torch.equal(unconditional, zeros), "without condition: zeros as features, position kept"


@torch.no_grad()
def test_keys_and_values_are_computed_once_per_window(small):
    calls = []
    for attention in small.unet.cross_attentions():
        attention.k_proj.register_forward_hook(lambda *_: calls.append(1))
    noise = lambda: torch.randn(1, 8, 8, 4, generator=torch.Generator().manual_seed(0))  # noqa: E731
    small.sample(torch.zeros(1, 8, 12), noise, Sampling(steps=10))
    assert len(calls) == len(list(small.unet.cross_attentions())) > 1


def test_a_fresh_network_gives_zeros():
    config = UNetConfig(
        context_width=20, width=16, multipliers=(1, 2), attention_factors=(2,), head_width=8, norm_groups=4
    )
    unet = UNet(config)
    found = unet(torch.randn(2, 8, 8, 4), torch.tensor([1, 900]), unet.read_context(torch.randn(2, 8, 20)))
    assert not found.any()


@torch.no_grad()
def test_every_condition_token_and_the_time_matter(small):
    features = torch.randn(1, 8, 12, generator=torch.Generator().manual_seed(0))
    x = torch.randn(1, 8, 8, 4, generator=torch.Generator().manual_seed(1))
    found = small.denoiser(features, 1.0)(x, torch.tensor([500]))
    assert not torch.allclose(small.denoiser(features, 1.0)(x, torch.tensor([100])), found, atol=1e-3)
    for token in range(8):
        changed = features.clone()
        changed[:, token] += 1
        assert not torch.allclose(small.denoiser(changed, 1.0)(x, torch.tensor([500])), found, atol=1e-4)


@torch.no_grad()
def test_queries_that_know_their_place_begin_at_their_own_token():
    config = UNetConfig(
        context_width=72, width=16, multipliers=(1, 2), attention_factors=(1, 2), head_width=8, norm_groups=4
    )
    generator = torch.Generator().manual_seed(0)
    features, code = torch.randn(1, 32, 40, generator=generator), position_code(32, 32)[None]
    for size in ((32, 16), (8, 4)):  # a token lies over 4 x 4 places, or over one
        hits = {}
        for grid in (None, (8, 4)):
            site = next(UNet(replace(config, token_grid=grid)).cross_attentions())
            keys, _ = site.keys_values(torch.cat([features, code], dim=-1))
            places = Transformer(16, 72, replace(config, token_grid=grid)).places(*size)
            queries = site.q_proj(torch.randn(1, size[0] * size[1], 16, generator=generator))
            if places is not None:
                queries = queries + site.place_proj(places)
            scores = rearrange(queries, "1 p (h e) -> h p e", h=2) @ rearrange(keys, "1 h n e -> h e n")
            own = rearrange(torch.arange(32), "(t f) -> t f", f=4)
            own = own.repeat_interleave(size[0] // 8, 0).repeat_interleave(size[1] // 4, 1).flatten()
            hits[grid] = float((scores.argmax(-1) == own).float().mean())
        assert hits[(8, 4)] > 0.8 and hits[None] < 0.2


def test_the_published_network_has_no_places():
    assert not [key for key in UNet(UNetConfig(width=32, multipliers=(1, 2))).state_dict() if "place" in key]
