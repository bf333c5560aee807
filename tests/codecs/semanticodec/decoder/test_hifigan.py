"""The vocoder against the reference and against the generator of `transformers`."""

from __future__ import annotations

import torch

from mm.codecs.semanticodec.config import VocoderConfig
from mm.codecs.semanticodec.convert_decoder import _vocoder_name
from mm.codecs.semanticodec.hifigan import HifiGan


@torch.no_grad()
def test_waveforms_equal_the_reference(reference, parity, close):
    fixture, vocoder = parity("hifigan"), reference.vocoder
    seen = {}
    places = {"conv_pre": vocoder.conv_in, "ups.0": vocoder.upsamples[0], "conv_post": vocoder.conv_out}
    handles = [
        module.register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: out}))
        for name, module in places.items()
    ]
    close(vocoder(fixture["mel"]), fixture["expected.wave"])
    for handle in handles:
        handle.remove()
    for name, found in seen.items():
        close(found[:1], fixture[f"expected.hidden.{name}"])
    close(vocoder(fixture["mel_one_frame"]), fixture["expected.wave_one_frame"])


def test_the_length_is_longer_than_the_hops():
    vocoder = HifiGan(VocoderConfig(width=32, mel_bins=4))
    assert vocoder.samples_of(1024) == 163872
    for frames in (1, 7):
        assert vocoder(torch.zeros(1, 4, frames)).shape[-1] == vocoder.samples_of(frames) == 160 * frames + 32


@torch.no_grad()
def test_it_equals_an_independent_implementation(randomise, close):
    from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

    config = VocoderConfig(width=32, mel_bins=10)
    vocoder = randomise(HifiGan(config)).eval()
    other = SpeechT5HifiGan(
        SpeechT5HifiGanConfig(
            model_in_dim=config.mel_bins,
            upsample_initial_channel=config.width,
            upsample_rates=list(config.rates),
            upsample_kernel_sizes=list(config.kernels),
            resblock_kernel_sizes=list(config.res_kernels),
            resblock_dilation_sizes=[list(config.dilations)] * 3,
            normalize_before=False,
        )
    ).eval()
    names = {"ups.": "upsampler."}
    state = {}
    for key, value in vocoder.state_dict().items():
        name = _vocoder_name(key, 3)
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        state[name] = value
    missing, unexpected = other.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"mean", "scale"}
    mel = torch.randn(2, 10, 12, generator=torch.Generator().manual_seed(0))
    close(vocoder(mel).squeeze(1), other(mel.transpose(1, 2)))
