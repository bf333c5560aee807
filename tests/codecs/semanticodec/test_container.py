"""Bit packing, bit rates from file sizes, checksums, recovery."""

import numpy as np
import pytest

from mm.codecs.semanticodec.bits import bits_of, pack_pairs, packed_size, unpack_pairs
from mm.codecs.semanticodec.config import VOCABULARIES, paper
from mm.codecs.semanticodec.container import HEADER_SIZE, TokenFile, pack, read_tokens, unpack, write_tokens

PUBLISHED_KBPS = {
    100: {32768: 1.40, 16384: 1.35, 8192: 1.30, 4096: 1.25},
    50: {32768: 0.700, 16384: 0.675, 8192: 0.650, 4096: 0.625},
    25: {32768: 0.3500, 16384: 0.3375, 8192: 0.3250, 4096: 0.3125},
}


def tokens(count, vocabs, seed=0):
    generator = np.random.default_rng(seed)
    return np.stack([generator.integers(0, vocab, count) for vocab in vocabs], axis=1)


def token_file(pairs=1300, vocabs=(32768, 8192), **changes):
    fields = {"token_rate": 100, "samples": pairs * 320, "gain": 0.5, "source_rate": 44_100, "model": 7}
    return TokenFile(
        tokens=tokens(pairs, vocabs), semantic_vocab=vocabs[0], acoustic_vocab=vocabs[1], **{**fields, **changes}
    )


@pytest.mark.parametrize("vocabs", [(32768, 8192), (4096, 8192), (300, 2), (1, 1)])
@pytest.mark.parametrize("count", [0, 1, 7, 513])
def test_packing_is_lossless_and_takes_the_stated_bits(vocabs, count):
    pairs = tokens(count, vocabs)
    data = pack_pairs(pairs, vocabs)
    assert len(data) == packed_size(count, vocabs) == -(-count * (bits_of(vocabs[0]) + bits_of(vocabs[1])) // 8)
    assert (unpack_pairs(data, count, vocabs) == pairs).all()


@pytest.mark.parametrize("rate", PUBLISHED_KBPS)
@pytest.mark.parametrize("vocab", VOCABULARIES)
def test_bit_rates_of_the_paper_from_file_sizes(rate, vocab, tables, tmp_path):
    encoder = paper(rate, vocab).encoder
    segments = 352  # one hour
    pairs = segments * encoder.segment_tokens
    file = token_file(pairs, (vocab, 8192), token_rate=rate, samples=segments * encoder.segment_samples)
    size = write_tokens(tmp_path / "a.stk", file).stat().st_size
    kbps = 8 * size / file.duration_s / 1000
    published = PUBLISHED_KBPS[rate][vocab]
    assert kbps == pytest.approx(published, rel=0.003), "header and checksums may add 0.3 %"
    payload = packed_size(pairs, file.vocabs)
    assert 8 * payload / file.duration_s / 1000 == pytest.approx(published, rel=1e-9)
    (row,) = (row for row in tables["models"] if row["token_rate"] == rate and row["semantic_vocab"] == vocab)
    assert row["bitrate_kbps"] == pytest.approx(published)


def test_everything_comes_back(tmp_path):
    file = token_file()
    found = read_tokens(write_tokens(tmp_path / "a.stk", file))
    assert (found.tokens == file.tokens).all()
    for name in ("token_rate", "semantic_vocab", "acoustic_vocab", "samples", "source_rate", "gain", "model"):
        assert getattr(found, name) == getattr(file, name), name


@pytest.mark.parametrize("lost", [1, 3, 900, 1790, 1800, 4000])
def test_a_cut_off_file_gives_everything_in_front_of_the_cut(lost):
    file = token_file()
    data = pack(file)[:-lost]
    with pytest.raises(ValueError, match=r"cut off after .* --recover"):
        unpack(data)
    found = unpack(data, recover=True)
    assert (found.tokens == file.tokens[: len(found.tokens)]).all()
    assert len(found.tokens) >= 1300 - 8 * lost / 28 - 2, "whole pairs in front of the cut were thrown away"
    assert found.samples == len(found.tokens) * 320


@pytest.mark.parametrize("block", [0, 1, 2])
def test_a_flipped_bit_is_found_in_its_block(block):
    file = token_file()
    data = bytearray(pack(file))
    data[HEADER_SIZE + block * 1794 + 100] ^= 4
    with pytest.raises(ValueError, match=f"wrong checksum in the block of pairs {512 * block}"):
        unpack(bytes(data))
    found = unpack(bytes(data), recover=True)
    assert (found.tokens == file.tokens[: 512 * block]).all() and len(found.tokens) == 512 * block


@pytest.mark.parametrize("place", range(4, HEADER_SIZE, 7))
def test_a_damaged_header_is_refused_even_on_recovery(place):
    data = bytearray(pack(token_file()))
    data[place] ^= 1
    with pytest.raises(ValueError, match="checksum of the header"):
        unpack(bytes(data), recover=True)


def test_other_files_are_named_as_such(tmp_path):
    for content, message in ((b"RIFF1234", "not a token container"), (b"", "not a token"), (b"MSTK12", "inside its")):
        (tmp_path / "a.stk").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read_tokens(tmp_path / "a.stk")
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_tokens(tmp_path / "b.stk")
    with pytest.raises(ValueError, match="5 surplus bytes"):
        unpack(pack(token_file()) + b"extra")


def test_ids_outside_their_vocabulary_are_not_written():
    file = token_file(4, (64, 64))
    file.tokens[2, 1] = 64
    with pytest.raises(ValueError, match=r"acoustic tokens must lie in 0\.\.63"):
        pack(file)


@pytest.mark.parametrize("field, value", [("token_rate", 75), ("gain", 0.0), ("gain", float("nan"))])
def test_impossible_fields_are_refused(field, value):
    with pytest.raises(ValueError, match=field):
        token_file(**{field: value})
