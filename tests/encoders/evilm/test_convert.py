"""Files in the published layouts: BERT layers, VIOLETv2, Video Swin."""

from __future__ import annotations

import pytest
import torch
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertEmbeddings, BertEncoder, BertOnlyMLMHead

from mm.checkpoint import load_state
from mm.encoders.evilm import EViLM, EViLMConfig, Swin3D, Swin3DConfig
from mm.encoders.evilm.bert import TextEmbeddings, TransformerStack
from mm.encoders.evilm.convert import EMBEDDING_RULES, bert_layers, load_video_swin, load_violetv2

VIDEO = Swin3DConfig(embed_dim=8, depths=(1, 2, 1, 1), num_heads=(1, 1, 2, 2), window=(2, 3, 3), temporal_pad="zero")
CONFIG = EViLMConfig(
    video=VIDEO,
    width=32,
    num_heads=4,
    fusion_layers=2,
    vocab_size=50,
    max_text_len=40,
    positions="slice",
    position_grid=3,
    codebook_size=16,
    tie_words=False,
)
BERT = BertConfig(
    hidden_size=32,
    num_attention_heads=4,
    num_hidden_layers=2,
    intermediate_size=128,
    vocab_size=50,
    max_position_embeddings=40,
    attn_implementation="eager",
)


def random_state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of a module with every value drawn anew, so that no two names can be confused."""
    state = module.state_dict()
    return {key: torch.randn(value.shape) if value.is_floating_point() else value for key, value in state.items()}


def swin_layout() -> dict[str, torch.Tensor]:
    """A Video Swin state dict, written out from the published names."""
    found = {"patch_embed.proj.weight": (8, 3, 2, 4, 4), "patch_embed.proj.bias": (8,)}
    found |= {f"{name}.{kind}": (8 if name == "patch_embed.norm" else 64,) for name in ("patch_embed.norm", "norm")
              for kind in ("weight", "bias")}  # fmt: skip
    for stage, (depth, heads) in enumerate(zip(VIDEO.depths, VIDEO.num_heads, strict=True)):
        width = 8 << stage
        for block in range(depth):
            at = f"layers.{stage}.blocks.{block}"
            for name, shape in {
                "attn.qkv": (3 * width, width),
                "attn.proj": (width, width),
                "mlp.fc1": (4 * width, width),
                "mlp.fc2": (width, 4 * width),
                "norm1": (width,),
                "norm2": (width,),
            }.items():
                found |= {f"{at}.{name}.weight": shape, f"{at}.{name}.bias": shape[:1]}
            found |= {f"{at}.attn.relative_position_bias_table": (3 * 5 * 5, heads)}
            found |= {f"{at}.attn.relative_position_index": (18, 18)}
        if stage < 3:
            found |= {f"layers.{stage}.downsample.reduction.weight": (2 * width, 4 * width)}
            found |= {f"layers.{stage}.downsample.norm.{kind}": (4 * width,) for kind in ("weight", "bias")}
    return {key: torch.randn(shape) for key, shape in found.items()}


def violet_layout() -> dict[str, torch.Tensor]:
    """A flat VIOLETv2 state dict."""
    found = {f"enc_img.swin.{key}": value for key, value in swin_layout().items()}
    shapes = {
        "enc_img.fc.weight": (32, 64),
        "enc_img.fc.bias": (32,),
        "enc_img.emb_cls": (1, 1, 1, 32),
        "enc_img.emb_pos": (1, 1, 10, 32),
        "enc_img.emb_len": (1, 6, 1, 32),
        "enc_img.emb_odr": (1, 1, 1, 32),
        "enc_img.norm.weight": (32,),
        "enc_img.norm.bias": (32,),
        "fc.1.weight": (64, 32),
        "fc.1.bias": (64,),
        "fc.3.weight": (1, 64),
        "fc.3.bias": (1,),
        "decoder_vq.0.weight": (64, 32, 1, 1),
        "decoder_vq.0.bias": (64,),
        "fc_mvm.1.weight": (32, 16),
        "fc_mvm.1.bias": (32,),
        "fc_mvm.3.weight": (16, 32),
        "fc_mvm.3.bias": (16,),
    }
    found |= {key: torch.randn(shape) for key, shape in shapes.items()}
    found |= {f"enc_txt.emb_txt.{key}": value for key, value in random_state(BertEmbeddings(BERT)).items()}
    found |= {f"trsfr.{key}": value for key, value in random_state(BertEncoder(BERT)).items()}
    return found | {f"fc_mtm.{key}": value for key, value in random_state(BertOnlyMLMHead(BERT)).items()}


def test_our_fusion_is_berts_encoder():
    torch.manual_seed(0)
    theirs, ours = BertEncoder(BERT).eval(), TransformerStack(2, 32, 4, 0.0).eval()
    state = {key.removeprefix("layer."): value for key, value in theirs.state_dict().items()}
    load_state(ours, bert_layers(state), source="bert")
    x, keep = torch.randn(2, 7, 32), torch.arange(7) < torch.tensor([[7], [4]])
    additive = torch.zeros(2, 1, 1, 7).masked_fill(~keep[:, None, None], -1e9)
    with torch.no_grad():
        expected = theirs(x, attention_mask=additive).last_hidden_state
        torch.testing.assert_close(ours(x, keep[:, None, None]), expected, atol=1e-5, rtol=1e-5)


def test_our_text_embeddings_are_berts():
    theirs, ours = BertEmbeddings(BERT).eval(), TextEmbeddings(50, 40, 32, 0.0).eval()
    state = {key: value for key, value in theirs.state_dict().items() if key != "position_ids"}
    for old, new in EMBEDDING_RULES:
        state = {key.replace(old, new): value for key, value in state.items()}
    load_state(ours, state, source="bert")
    ids = torch.randint(50, (2, 9))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids), atol=1e-5, rtol=1e-5)


def test_a_violetv2_file_finds_every_place(tmp_path):
    tensors, model = violet_layout(), EViLM(CONFIG)
    torch.save(tensors, tmp_path / "violet.pt")
    report = load_violetv2(model, tmp_path / "violet.pt")
    assert not report.fresh and report.loaded == len(model.state_dict())
    assert "enc_img.emb_odr" in report.left_out
    attention = "trsfr.layer.1.attention.self"
    assert torch.equal(model.fusion[1].qkv.weight[32:64], tensors[f"{attention}.key.weight"])
    assert torch.equal(model.fusion[1].norm1.bias, tensors["trsfr.layer.1.attention.output.LayerNorm.bias"])
    assert torch.equal(model.video.places, tensors["enc_img.emb_pos"][0, 0])
    assert torch.equal(model.video.frames, tensors["enc_img.emb_len"][0, :, 0])
    assert torch.equal(model.words.words, tensors["fc_mtm.predictions.decoder.weight"])
    assert torch.equal(model.matching[3].weight, tensors["fc.3.weight"])
    table = "enc_img.swin.layers.1.blocks.1.attn.relative_position_bias_table"
    assert torch.equal(model.video.trunk.stages[1][1].attn.table, tensors[table])


def test_a_fine_tuned_file_leaves_heads_fresh_and_says_so(tmp_path):
    tensors = {k: v for k, v in violet_layout().items() if not k.startswith(("fc_m", "decoder_vq"))}
    torch.save({"model": tensors}, tmp_path / "violet.pt")
    report = load_violetv2(EViLM(CONFIG), tmp_path / "violet.pt")
    assert report.fresh and all(key.startswith(("codes.", "words.")) for key in report.fresh)


@pytest.mark.parametrize("lost", ["enc_img.fc.bias", "trsfr.layer.0.attention.self.key.bias", "fc.3.weight"])
def test_a_missing_tensor_stops_the_load(tmp_path, lost):
    tensors = violet_layout()
    del tensors[lost]
    torch.save(tensors, tmp_path / "violet.pt")
    with pytest.raises(ValueError, match=r"missing|lacks"):
        load_violetv2(EViLM(CONFIG), tmp_path / "violet.pt")


def test_a_video_swin_file_loads_and_an_unknown_name_does_not(tmp_path):
    tensors = {f"backbone.{key}": value for key, value in swin_layout().items()}
    torch.save({"state_dict": tensors | {"cls_head.fc_cls.weight": torch.zeros(4, 64)}}, tmp_path / "swin.pth")
    trunk = Swin3D(VIDEO)
    report = load_video_swin(trunk, tmp_path / "swin.pth")
    assert not report.fresh and "cls_head.fc_cls.weight" in report.left_out
    assert torch.equal(trunk.merges[2].reduction.weight, tensors["backbone.layers.2.downsample.reduction.weight"])
    torch.save({"state_dict": tensors | {"backbone.extra": torch.zeros(1)}}, tmp_path / "swin.pth")
    with pytest.raises(ValueError, match=r"(?s)unexpected.*extra"):
        load_video_swin(trunk, tmp_path / "swin.pth")
    (tmp_path / "torn.pth").write_bytes(b"not weights")
    with pytest.raises(ValueError, match=r"torn\.pth"):
        load_video_swin(trunk, tmp_path / "torn.pth")
