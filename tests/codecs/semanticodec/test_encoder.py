"""AudioMAE, stacking, acoustic encoder and tokens against the published numbers and independent oracles."""

import json
from functools import partial

import pytest
import torch
from einops import rearrange
from timm.models.vision_transformer import Block

from mm.checkpoint import load_state
from mm.codecs.semanticodec.acoustic import acoustic_input
from mm.codecs.semanticodec.audiomae import AudioMae, position_table
from mm.codecs.semanticodec.config import AudioMaeConfig, EncoderConfig, QuantizerConfig, paper
from mm.codecs.semanticodec.convert import encoder_state
from mm.codecs.semanticodec.encoder import SemantiCodecEncoder
from mm.codecs.semanticodec.stacking import stack_patches

SMALL = AudioMaeConfig(width=8, num_heads=2)


@pytest.fixture(scope="module")
def frames(parity):
    data = parity("audiomae")
    found = data["fbank.silence_value"].repeat(3, 1024, 128)
    found[:, 1022:] = data["fbank.pad_value"]
    found[0, :264] = data["fbank.item0_head"]
    found[1] = data["fbank.item1_coarse"].repeat_interleave(4, 0).repeat_interleave(4, 1)
    found[1, 1022:] = data["fbank.pad_value"]
    return found


def load_audiomae(data):
    model = AudioMae(SMALL).eval()
    state, _ = encoder_state(data.weights)
    load_state(model, {key[9:]: value for key, value in state.items() if key.startswith("audiomae.")}, source="parity")
    return model


def load_encoder(parity, stack):
    """The published encoder at the width of the fixtures."""
    data = parity(f"encoder_k{stack}")
    settings = json.loads(data.metadata["config"])
    encoder = SemantiCodecEncoder(
        EncoderConfig(audiomae=SMALL, token_rate=100 // stack, lstm_layers=settings["lstm_layers"]),
        QuantizerConfig(semantic_vocabs=(settings["n_semantic"],), acoustic_vocab=settings["n_acoustic"]),
    ).eval()
    state, report = encoder_state({**parity("audiomae").weights, **data.weights})
    state[f"semantic.codebook_{settings['n_semantic']}"] = data["semantic_codebook"]
    load_state(encoder, state, source="parity")
    assert not report.unknown
    return encoder


def test_audiomae_features(parity, frames, relative_error):
    data = parity("audiomae")
    with torch.no_grad():
        model = load_audiomae(data)
        assert relative_error(model(frames), data["expected.features"]) < 1e-5
        for index, output in zip((9, 10, 11), model.block_outputs(frames[:1]), strict=True):
            assert relative_error(output, data[f"expected.block_output.{index}"]) < 1e-5
        last = model.norm(model.block_outputs(frames)[-1])
    assert relative_error(last, data["expected.features"]) > 0.1, "the last block alone must not pass for the average"


def test_audiomae_equals_blocks_run_by_hand(frames):
    torch.manual_seed(0)
    model = AudioMae(AudioMaeConfig(width=16, num_heads=4, depth=4, averaged_blocks=3)).eval()
    blocks = [Block(16, 4, 4.0, qkv_bias=True, norm_layer=partial(torch.nn.LayerNorm, eps=1e-6)) for _ in range(4)]
    for block, own in zip(blocks, model.blocks, strict=True):
        block.load_state_dict(own.state_dict())
    with torch.no_grad():
        patches = frames[:1].unfold(1, 16, 16).unfold(2, 16, 16)  # (1, 64, 8, 16, 16)
        weight = model.patch_embed.proj.weight.flatten(1)
        x = patches.flatten(1, 2).flatten(2) @ weight.T + model.patch_embed.proj.bias + model.pos_embed[:, 1:]
        x = torch.cat([model.cls_token + model.pos_embed[:, :1], x], 1)
        outputs = []
        for block in blocks:
            x = block.eval()(x)
            outputs.append(model.norm(x))
        torch.testing.assert_close(model(frames[:1]), sum(outputs[1:]) / 3, atol=1e-5, rtol=1e-5)


def test_position_table_is_that_of_the_transposed_grid(parity):
    data = parity("audiomae")
    table = position_table(768, (64, 8))
    torch.testing.assert_close(
        table[data["expected.pos768.row_index"]], data["expected.pos768.rows"], atol=1e-6, rtol=0
    )
    torch.testing.assert_close(
        position_table(8, (64, 8)), data.weights["audiomae.model.pos_embed"][0], atol=1e-6, rtol=0
    )
    row, column = table[1 + 64, 384:], table[1 + 9, :384]  # slot 64: row 1, column 0; slot 9: row 0, column 9
    rate = 10_000 ** -(torch.arange(192, dtype=torch.float64) / 192)
    torch.testing.assert_close(row.double(), torch.cat([rate.sin(), rate.cos()]), atol=1e-6, rtol=0)
    torch.testing.assert_close(column.double(), torch.cat([(9 * rate).sin(), (9 * rate).cos()]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("stack", [1, 2, 4])
def test_stacking_groups_the_right_neighbours(stack):
    patches = torch.arange(512).float().reshape(1, 512, 1)  # each patch is its own index
    found = stack_patches(patches, stack, (64, 8))[0].long()
    if stack == 1:
        expected = torch.arange(512)[:, None]
    elif stack == 2:
        expected = torch.tensor([[8 * t + f, 8 * t + f + 1] for t in range(64) for f in range(0, 8, 2)])
    else:
        tiles = [(t, f) for t in range(0, 64, 2) for f in range(0, 8, 2)]
        expected = torch.tensor([[8 * t + f, 8 * t + f + 1, 8 * t + 8 + f, 8 * t + 9 + f] for t, f in tiles])
    assert torch.equal(found, expected)


@pytest.mark.parametrize("stack", [1, 2, 4])
def test_encoder(parity, frames, stack, relative_error):
    data = parity(f"encoder_k{stack}")
    encoder = load_encoder(parity, stack)
    with torch.no_grad():
        stacked = stack_patches(data["representation"][:, 1:], stack, (64, 8))
        assert torch.equal(stacked, data["expected.stacked"])
        assert relative_error(encoder.features(frames), stacked) < 1e-5
        keep = encoder.keep(frames)
        count = torch.ceil(encoder.config.segment_tokens * data["kept_fraction"]).long()
        assert torch.equal(keep.sum(1), count)
        codes = encoder.semantic.encode(stacked)
        semantic = encoder.semantic.lookup(codes)
        joined = acoustic_input(stacked, semantic, keep)
        index = data["expected.lstm.slice_index"]
        assert relative_error(joined[:, index], data["expected.lstm_input.slice"]) < 1e-5
        assert relative_error(encoder.acoustic.lstm(joined)[0][:, index], data["expected.lstm_output.slice"]) < 1e-5
        assert relative_error(encoder.acoustic(stacked, semantic, keep), data["expected.acoustic_pre_vq"]) < 1e-5
        found = encoder.quantize(stacked, keep)
    sure = data["expected.margin"] > 1e-4
    assert sure.float().mean() > 0.95
    assert torch.equal(found.tokens[sure], data["expected.tokens"][sure])
    index = data["expected.condition.row_index"]
    width = found.condition.shape[-1]
    assert relative_error(found.condition[:, index], data["expected.condition.rows"][..., :width]) < 1e-5
    assert relative_error(encoder.embed(data["expected.tokens"][:1])[0, index], data["expected.lookup.rows"]) < 1e-5


@pytest.mark.parametrize("stack, masked", [(1, [511]), (2, []), (4, [])])
def test_a_full_segment_masks_at_most_its_last_token(stack, masked):
    encoder = SemantiCodecEncoder(
        EncoderConfig(audiomae=SMALL, token_rate=100 // stack, lstm_layers=1),
        QuantizerConfig(semantic_vocabs=(8,), acoustic_vocab=4),
    )
    frames = torch.randn(1, 1024, 128, generator=torch.Generator().manual_seed(0))
    frames[:, 1022:] = 0.467
    assert (~encoder.keep(frames)[0]).nonzero()[:, 0].tolist() == masked


@pytest.mark.parametrize("rate, millions", [(100, 207.7), (50, 604.1), (25, 1510)])
def test_parameter_counts_on_meta(layout, rate, millions):
    with torch.device("meta"):
        config = paper(rate)
        encoder = SemantiCodecEncoder(config.encoder, config.quantizer)
    lstm = sum(value.numel() for value in encoder.acoustic.lstm.parameters())
    assert round(lstm / 1e6, 1 if rate > 25 else 0) == millions
    published = layout["counts"][str(rate)]["encoder_elements"]
    unused = 0
    for name, shape in layout["token_rate_100"]["encoder"].items():
        if "decoder_" in name or "mask_token" in name or "initted" in name:
            unused += torch.Size([int(n) for n in shape.split("x")]).numel()
    own = sum(v.numel() for k, v in encoder.state_dict().items() if "semantic." not in k and not k.endswith(".steps"))
    assert own == published - unused


def test_centroids_return_their_own_ids():
    config = QuantizerConfig(semantic_vocabs=(16, 32), acoustic_vocab=8)
    encoder = SemantiCodecEncoder(EncoderConfig(audiomae=SMALL, lstm_layers=1), config)
    for vocab in config.semantic_vocabs:
        assert torch.equal(encoder.semantic.encode(encoder.semantic.codebook(vocab), vocab), torch.arange(vocab))
    x = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(encoder.semantic.encode(x, 16), torch.cdist(x, encoder.semantic.codebook(16)).argmin(1))


def test_tokens_outside_their_vocabulary_are_refused():
    config = QuantizerConfig(semantic_vocabs=(16,), acoustic_vocab=8)
    encoder = SemantiCodecEncoder(EncoderConfig(audiomae=SMALL, lstm_layers=1), config)
    for bad in ([16, 0], [-1, 0], [0, 8], [0, -1]):
        with pytest.raises(ValueError, match="must lie in 0"):
            encoder.embed(torch.tensor([[bad]]))


def test_k1_embedding_is_channel_wise_not_positional(parity):
    encoder = load_encoder(parity, 1)
    tokens = parity("encoder_k1")["expected.tokens"][:1]
    embedded = encoder.embed(tokens)
    acoustic, semantic = rearrange(embedded, "b n (two d) -> two b n d", two=2)
    assert torch.equal(semantic, encoder.semantic.codebook()[tokens[..., 0]])
    assert torch.equal(acoustic, encoder.quantizer.codebook[tokens[..., 1]])
