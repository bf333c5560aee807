"""What may be attended to, in every form and under every attention implementation."""

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask
from transformers import DynamicCache

from mm.backbone import LanguageBackbone
from tests.backbone.conftest import pad

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
IMPLEMENTATIONS = ("eager", "sdpa", "flex_attention")


def prefix_mask(b, h, q, k):
    """Causal, and the first four tokens see one another."""
    return (q >= k) | (k < 4)


def dense(mask_mod, length):
    q, k = torch.arange(length)[:, None], torch.arange(length)[None]
    return mask_mod(0, 0, q, k)[None, None]


@pytest.fixture(autouse=True)
def uncompiled_flex():
    """Flex attention compiles for tens of seconds; its uncompiled form computes the same."""
    with torch.compiler.set_stance("force_eager"):
        yield


@torch.no_grad()
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("form", ["dense", "block"])
def test_dense_and_block_masks_mean_the_same_everywhere(ids, implementation, form):
    reference = LanguageBackbone.tiny("llama", attn_implementation="sdpa")
    keep = dense(prefix_mask, 14)
    expected = reference.hidden_states(ids, attention=keep)
    assert not torch.allclose(expected, reference.hidden_states(ids), atol=1e-2)
    backbone = LanguageBackbone.tiny("llama", attn_implementation=implementation)
    mask = keep if form == "dense" else create_block_mask(prefix_mask, None, None, 14, 14, device="cpu")
    torch.testing.assert_close(backbone.hidden_states(ids, attention=mask), expected, atol=2e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_masks_per_row_and_per_head(ids, implementation):
    keep = torch.rand(2, 4, 14, 14, generator=torch.Generator().manual_seed(0)) < 0.5
    keep |= torch.eye(14, dtype=torch.bool)
    expected = LanguageBackbone.tiny("qwen2", attn_implementation="eager").hidden_states(ids, attention=keep)
    backbone = LanguageBackbone.tiny("qwen2", attn_implementation=implementation)
    torch.testing.assert_close(backbone.hidden_states(ids, attention=keep), expected, atol=2e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "openelm"])
def test_flex_pads_and_windows_like_eager(ids, family):
    padded, mask = pad(ids, "left", 3)
    outs = [
        LanguageBackbone.tiny(family, attn_implementation=name).hidden_states(padded, attention=mask)[:, 3:]
        for name in ("eager", "flex_attention")
    ]
    torch.testing.assert_close(outs[1], outs[0], atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_windows_alternate_in_gemma2(ids):
    backbone = LanguageBackbone.tiny("gemma2")
    assert backbone.config.layer_types[:2] == ["sliding_attention", "full_attention"]
    other = ids.clone()
    other[:, 0] = 3 + (ids[:, 0] - 2) % 61  # far outside the window of the last token
    near, far = (
        (backbone.hidden_states(a, layer=k) - backbone.hidden_states(b, layer=k))[:, -1].abs().max()
        for k, (a, b) in ((1, (ids, other)), (2, (ids, other)))
    )
    assert near == 0 and far > 1e-4, "block 0 has a window of 8, block 1 sees everything"


@torch.no_grad()
def test_a_mask_per_kind_of_block(ids):
    backbone = LanguageBackbone.tiny("gemma2")
    causal = dense(lambda _b, _h, q, k: q >= k, 14)
    window = dense(lambda _b, _h, q, k: (q >= k) & (q - k < 8), 14)
    masks = {"full_attention": causal, "sliding_attention": window}
    torch.testing.assert_close(backbone.hidden_states(ids, attention=masks), backbone.hidden_states(ids))
    assert not torch.allclose(backbone.hidden_states(ids, attention=causal), backbone.hidden_states(ids), atol=1e-3)
    with pytest.raises(ValueError, match="no mask for block kind sliding_attention"):
        backbone.hidden_states(ids, attention={"full_attention": causal})


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_a_4d_mask_with_a_cache(ids, implementation):
    backbone = LanguageBackbone.tiny("llama", attn_implementation=implementation)
    keep, cache = dense(prefix_mask, 14), DynamicCache()
    whole = backbone.hidden_states(ids, attention=keep)
    backbone.hidden_states(ids[:, :9], attention=keep[:, :, :9, :9], cache=cache)
    rest = backbone.hidden_states(ids[:, 9:], attention=keep[:, :, 9:], cache=cache)
    torch.testing.assert_close(rest, whole[:, 9:], atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_an_implementation_without_full_masks_says_so(ids):
    backbone = LanguageBackbone.tiny("llama")
    backbone.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="flash_attention_2 takes no 4-D or block masks"):
        backbone.hidden_states(ids, attention=torch.ones(1, 1, 14, 14, dtype=torch.bool))


@torch.no_grad()
def test_masks_keep_the_dtype_of_the_model(ids):
    backbone = LanguageBackbone.tiny("llama", attn_implementation="eager").to(torch.bfloat16)
    assert backbone.hidden_states(ids, attention=dense(prefix_mask, 14)).dtype == torch.bfloat16


@torch.no_grad()
def test_the_loop_compiles_in_one_graph(ids):
    backbone = LanguageBackbone.tiny("llama", depth=2)
    keep, graphs = dense(prefix_mask, 14), []

    def count(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    torch.compiler.set_stance("default")
    compiled = torch.compile(backbone.hidden_states, backend=count, fullgraph=True)
    torch.testing.assert_close(compiled(ids, layer=1, attention=keep), backbone.hidden_states(ids, 1, keep))
    compiled(ids + 1, layer=1, attention=~keep)
    assert len(graphs) == 1, "new values must not compile again"
