"""Cost of decoding at the published sizes, counted on meta tensors: keys and values once per window, or in every call.

One multiply-add counts as two operations. Source: sizes of section 6 of the released checkpoints; a window is 10.24 s.
"""

from __future__ import annotations

from typing import Any

import torch

from mm.codecs.semanticodec.config import paper
from mm.codecs.semanticodec.decoder import SemantiCodecDecoder
from mm.metrics.flops import count_flops

RATES = (100, 50, 25)


def window_flops(token_rate: Any) -> dict[str, int]:
    """Operations of each part for one window: `network` (one call), `context` (one condition), `mel`, `vocoder`."""
    config = paper(token_rate).decoder
    with torch.device("meta"), torch.no_grad():
        decoder = SemantiCodecDecoder(config).eval()
        condition = torch.empty(1, config.window_tokens, config.unet.context_width)
        latents, timesteps = torch.empty(1, *config.latent_shape), torch.zeros(1, dtype=torch.long)
        context = decoder.unet.read_context(condition)
        mel = torch.empty(1, config.vae.mel_bins, config.window_frames)
        return {
            "network": count_flops(lambda: decoder.unet(latents, timesteps, context)),
            "context": count_flops(lambda: decoder.unet.read_context(condition)),
            "mel": count_flops(lambda: decoder.vae.decode(latents)),
            "vocoder": count_flops(lambda: decoder.vocoder(mel)),
        }


def rows(steps: int = 50) -> list[dict[str, Any]]:
    """One window with guidance: the condition projected once, against in every call.

    Returns:
        Rows {setting, ours_tflop, baseline_tflop, saving, network_gflop, context_gflop, mel_tflop, vocoder_tflop}.
    """
    found = []
    for rate in RATES:
        cost = window_flops(rate)
        rest = cost["mel"] + cost["vocoder"]
        ours = 2 * steps * cost["network"] + 2 * cost["context"] + rest
        baseline = 2 * steps * (cost["network"] + cost["context"]) + rest
        found.append(
            {
                "setting": f"{rate} tokens/s, one window of 10.24 s, {steps} steps with guidance",
                "ours_tflop": ours / 1e12,
                "baseline_tflop": baseline / 1e12,
                "saving": 1 - ours / baseline,
                "network_gflop": cost["network"] / 1e9,
                "context_gflop": cost["context"] / 1e9,
                "mel_tflop": cost["mel"] / 1e12,
                "vocoder_tflop": cost["vocoder"] / 1e12,
            }
        )
    return found
