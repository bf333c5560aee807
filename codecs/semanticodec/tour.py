"""SemantiCodec's page of the tour: sounds before and after, bit rates, controls, what tokens say."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mm.checkpoint import load
from mm.codecs.semanticodec.codec import SemantiCodec
from mm.codecs.semanticodec.config import VOCABULARIES, paper
from mm.codecs.semanticodec.decoder import Sampling
from mm.codecs.semanticodec.evaluate import evaluate, held_out
from mm.codecs.semanticodec.flops import rows as flops_rows
from mm.codecs.semanticodec.round_trip import packed, round_trip
from mm.codecs.semanticodec.show import mel_figure, token_strip
from mm.codecs.semanticodec.sounds import DOMAINS

if TYPE_CHECKING:
    from mm.app.report import Page

SHOWN = 3
"""Sounds to listen to."""
MINUTE = 47
"""Sounds in a row for the size of a long file: a minute."""
SCORED = 32
"""Sounds per score; `mm zoo verify` takes more."""


def page(page: Page) -> None:
    """Fill the page."""
    codec = load("semanticodec_tiny")
    if not isinstance(codec, SemantiCodec):
        raise TypeError("semanticodec_tiny must be a SemantiCodec")
    page.text(
        "SemantiCodec writes sound as pairs of tokens: a semantic one, the nearest of frozen k-means centres of a "
        "self-supervised network's features, and an acoustic one for what that lost. A diffusion network paints the "
        "mel spectrogram back and a vocoder makes it sound. The small codec below knows made sounds only; it shows the "
        "method, not the quality of the published models."
    )
    _sounds(page, codec)
    _scores(page, codec)
    _rates(page, codec)


def _sounds(page: Page, codec: SemantiCodec) -> None:
    page.heading("Before and after")
    sounds = held_out(codec, page.seed, SHOWN)
    rows, waves, trips = [], {}, []
    for number, wave in enumerate(sounds["waves"][:, : codec.config.encoder.segment_samples]):
        name = f"{DOMAINS[int(sounds['domains'][number])]} {number // len(DOMAINS) + 1}"
        trip = round_trip(codec, wave, Sampling(seed=page.seed))
        trips.append((name, trip))
        waves |= {f"{name}, source": trip.source, f"{name}, decoded": trip.decoded}
        rows.append({"sound": name, "seconds": trip.seconds, "token pairs": len(trip.tokens), "bytes": len(trip.file)})
    for name, trip in trips:
        page.sound(trip.source.numpy(), codec.sample_rate, f"{name}, source")
        page.sound(trip.decoded.numpy(), codec.sample_rate, f"{name}, decoded from {len(trip.tokens)} token pairs")
        page.picture(
            token_strip(codec, trip.tokens),
            f"Tokens of {name}: semantic above, acoustic below, a colour per id",
            scale=12,
        )
    page.figure(mel_figure(codec, waves), "Held-out made sounds and what their tokens decode to.")
    minute = held_out(codec, page.seed, MINUTE)["waves"].flatten()
    tokens, file = packed(codec, minute)
    seconds = len(minute) / codec.sample_rate
    rows.append(
        {"sound": f"{MINUTE} sounds in a row", "seconds": seconds, "token pairs": len(tokens), "bytes": len(file)}
    )
    rows[-1] |= {"bit/s": 8 * len(file) / seconds, "times smaller than 16-bit samples": 2 * len(minute) / len(file)}
    page.table(rows, "Packed files; 48 bytes of each are the header", key="files")


def _scores(page: Page, codec: SemantiCodec) -> None:
    page.heading("Controls")
    found = evaluate(codec, seed=page.seed, count=SCORED)
    rows = [
        {
            "decoded from": label,
            "mel error (mean |difference| of the natural logarithm)": found[f"mel_error_{name}"],
            "squared error of v": found.get(f"v_error_{name}", "-"),
        }
        for name, label in (
            ("autoencoder", "the sound itself, through the mel autoencoder alone"),
            ("unquantized", "features in front of both codebooks"),
            ("tokens", "semantic and acoustic tokens"),
            ("semantic_only", "semantic tokens alone"),
            ("shuffled", "tokens of another sound"),
        )
    ]
    page.table(rows, f"{SCORED} held-out sounds, 8 steps, the same noise for all rows", key="controls")
    page.table(
        [
            {"question": "own source among 16, from tokens", "share": found["retrieval_top1"], "chance": 1 / 16},
            {"question": "the same, shuffled tokens", "share": found["retrieval_top1_shuffled"], "chance": 1 / 16},
            {"question": "speech, music or other? semantic tokens", "share": found["probe_semantic"], "chance": 1 / 3},
            {"question": "the same, acoustic tokens", "share": found["probe_acoustic"], "chance": 1 / 3},
            {"question": "the same, shuffled labels", "share": found["probe_shuffled_labels"], "chance": 1 / 3},
        ],
        "Retrieval of the source, and a linear probe on averaged codewords",
        key="retrieval",
    )


def _rates(page: Page, codec: SemantiCodec) -> None:
    page.heading("Bit rates")
    rows = []
    for rate in (25, 50, 100):
        with torch.device("meta"):
            published = SemantiCodec(paper(rate))
        rows.append(
            {"tokens per second": rate}
            | {f"vocabulary {vocab}": f"{published.bitrate_of(vocab) / 1000:g} kbit/s" for vocab in VOCABULARIES}
        )
    page.table(rows, "The published sizes; the acoustic vocabulary is 8192", key="bit_rates")
    page.table(
        [{"vocabulary": vocab, "bit/s": codec.bitrate_of(vocab)} for vocab in codec.semantic_vocabs],
        "The small codec, 50 tokens per second",
        key="tiny_bit_rates",
    )
    page.heading("At full size")
    page.table(flops_rows(), "Operations of decoding", key="full_size")
