"""The mel autoencoder against the reference."""

from __future__ import annotations

import torch

from mm.codecs.semanticodec.vae import Posterior


@torch.no_grad()
def test_the_posterior_equals_the_reference(reference, parity, close):
    fixture = parity("vae")
    found = reference.vae.encode(fixture["mel"])
    close(found.mean, fixture["expected.mean"])
    close(found.log_variance, fixture["expected.logvar"])
    close((0.5 * found.log_variance).exp(), fixture["expected.std"])
    close(found.kl(), fixture["expected.kl"])
    moments = reference.vae.to_moments(reference.vae.encoder(fixture["mel"]))
    close(moments, fixture["expected.moments"])
    close(reference.vae.to_moments(reference.vae.encoder(0.001 * fixture["mel"])), fixture["expected.moments_small"])


@torch.no_grad()
def test_attention_of_the_middle_equals_the_reference(reference, parity, close):
    fixture, seen = parity("vae"), []
    handle = reference.vae.encoder.middle[1].register_forward_hook(lambda _m, _i, out: seen.append(out))
    reference.vae.encode(fixture["mel"])
    handle.remove()
    close(seen[0][:1], fixture["expected.hidden.encoder.mid.attn_1"])


@torch.no_grad()
def test_decoding_equals_the_reference(reference, parity, close):
    fixture = parity("vae")
    close(reference.vae.decode(fixture["z"]), fixture["expected.decode"])
    close(reference.vae.decode(0.001 * fixture["z"]), fixture["expected.decode_small"])
    close(reference.mel(fixture["z"]), fixture["expected.decode_scaled"])
    close(reference.vae(fixture["mel"]), fixture["expected.reconstruction_mode"])


def test_samples_have_the_moments_of_the_posterior():
    posterior = Posterior(mean=torch.full((1, 1, 200, 200), 2.0), log_variance=torch.full((1, 1, 200, 200), -1.0))
    drawn = posterior.sample(torch.Generator().manual_seed(0))
    assert abs(float(drawn.mean()) - 2) < 0.02 and abs(float(drawn.std()) - float(torch.tensor(-0.5).exp())) < 0.02
    standard = Posterior(mean=torch.zeros(1, 1, 2, 2), log_variance=torch.zeros(1, 1, 2, 2))
    assert not standard.kl().any() and float(posterior.kl()) > 1
