"""Local contrastive similarity against the triple loop of the formula and against the published implementation."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open

from mm.kernels.contrastive import (
    local_attention,
    local_contrastive_similarity,
    local_similarity_backward_op,
    local_similarity_op,
)
from mm.kernels.measure import peak_bytes

FIXTURE = Path(__file__).parents[1] / "parity/data/velvet_losses.safetensors"


def triple_loop(regions, tokens, keep, t1=4.0, t2=5.0, t3=10.0, pre=1.0, normalize=True):
    """Volume by volume, text by text, token by token; differentiable."""
    result = []
    for volume in regions:
        for text, real in zip(tokens, keep, strict=True):
            u = text[real]
            r = volume
            if normalize:
                u, r = u / u.norm(dim=1, keepdim=True), r / r.norm(dim=1, keepdim=True)
            weight = (pre * r @ u.T).exp()
            beta = weight / weight.sum(1, keepdim=True)
            total = 0.0
            for token in range(len(u)):
                alpha = (t1 * beta[:, token]).exp()
                context = (alpha[:, None] * r).sum(0) / alpha.sum()
                total = total + (t2 * context @ u[token] / (context.norm() * u[token].norm())).exp()
            result.append(t3 * total.log())
    return torch.stack(result).view(len(regions), len(tokens))


def tensors(rng, dtype=torch.float64, volumes=3, regions=7, texts=2, length=5, width=6):
    r = torch.randn(volumes, regions, width, generator=rng, dtype=torch.float64).to(dtype)
    u = torch.randn(texts, length, width, generator=rng, dtype=torch.float64).to(dtype)
    keep = torch.rand(texts, length, generator=rng) < 0.7
    keep[:, 1] = True
    keep[-1, -1] = False
    return r, u, keep


def run(function, r, u, grad):
    leaves = [x.detach().clone().requires_grad_() for x in (r, u)]
    out = function(*leaves)
    out.backward(grad.to(out.dtype))
    return [out.detach(), *(x.grad for x in leaves)]


@pytest.mark.parametrize("impl", ["blocked", "reference"])
@pytest.mark.parametrize(
    "settings", [{}, {"pre": 5.0, "t1": 40.0, "t2": 3.0, "t3": 2.0}, {"normalize": False}], ids=str
)
def test_equals_the_triple_loop(settings, impl, rng, close):
    r, u, keep = tensors(rng)
    grad = torch.randn(3, 2, generator=rng, dtype=torch.float64)
    exact = run(lambda r, u: triple_loop(r, u, keep, **settings), r, u, grad)
    names = {"pre": "pre_scale", "t1": "region_temperature", "t2": "token_temperature", "t3": "similarity_temperature"}
    names["normalize"] = "normalize_before_attention"
    options = {names[key]: value for key, value in settings.items()}
    made = run(lambda r, u: local_contrastive_similarity(r, u, keep, impl=impl, **options), r, u, grad)
    for ours, true in zip(made, exact, strict=True):
        close(ours, true)


def test_blocks_of_any_size_give_the_same(monkeypatch, rng, close):
    r, u, keep = tensors(rng)
    grad = torch.randn(3, 2, generator=rng, dtype=torch.float64)
    whole = run(lambda r, u: local_contrastive_similarity(r, u, keep), r, u, grad)
    monkeypatch.setattr("mm.kernels.contrastive.BLOCK_BYTES", {"cpu": 1, "cuda": 1})
    for ours, true in zip(run(lambda r, u: local_contrastive_similarity(r, u, keep), r, u, grad), whole, strict=True):
        close(ours, true)


def fixture(level):
    """Regions (B, S, E), padded tokens with keep, settings, and what the published code gave."""
    with safe_open(FIXTURE, "pt") as file:
        settings = json.loads(file.metadata()["meta"])["settings"]
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    regions = stored[f"{level}.regions"]
    texts = [stored[f"{level}.tokens.{i}"] for i in range(len(regions))]
    tokens = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=7.0)  # padding must not matter
    keep = torch.arange(tokens.shape[1]) < torch.tensor([len(text) for text in texts])[:, None]
    return regions, tokens, keep, settings, stored


@pytest.mark.parametrize("name", ["default", "mean", "sharp"])
@pytest.mark.parametrize("level", ["sentence", "word"])
@pytest.mark.parametrize("impl", ["blocked", "reference"])
def test_published_similarity_loss_and_gradients(level, name, impl, close):
    regions, tokens, keep, settings, stored = fixture(level)
    chosen = settings[f"{level}.{name}"]
    leaves = [regions.clone().requires_grad_(), tokens.clone().requires_grad_()]
    similarity = local_contrastive_similarity(
        leaves[0].flatten(1, 3),
        leaves[1],
        keep,
        region_temperature=chosen["temp1"],
        token_temperature=chosen["temp2"],
        similarity_temperature=chosen["temp3"],
        reduction=chosen["agg"],
        impl=impl,
    )
    expected = f"expected.{level}.{name}"
    close(similarity, stored[f"{expected}.similarity"])
    target = torch.arange(len(regions))
    loss = (F.cross_entropy(similarity, target) + F.cross_entropy(similarity.T, target)) / 2
    close(loss.reshape(1), stored[f"{expected}.loss"], limit=1e-4)
    loss.backward()
    close(leaves[0].grad, stored[f"{expected}.grad_regions"], limit=1e-4)
    for i, real in enumerate(keep):
        close(leaves[1].grad[i, real], stored[f"{expected}.grad_tokens.{i}"], limit=1e-4)
        assert not leaves[1].grad[i, ~real].any()


@pytest.mark.parametrize("level", ["sentence", "word"])
def test_published_attention_of_matching_pairs(level, close):
    regions, tokens, keep, settings, stored = fixture(level)
    for i, real in enumerate(keep):
        made = local_attention(
            regions[i].flatten(0, 2), tokens[i, real], region_temperature=settings[f"{level}.sharp"]["temp1"]
        )
        close(made.view(-1, *regions.shape[1:4]), stored[f"expected.{level}.sharp.attention.{i}"])


def test_order_of_regions_and_padding_do_not_matter(rng, close):
    r, u, keep = tensors(rng, torch.float32)
    plain = local_contrastive_similarity(r, u, keep)
    close(local_contrastive_similarity(r[:, torch.randperm(7, generator=rng)], u, keep), plain)
    longer = torch.cat([u, torch.full((2, 3, 6), 9.0)], 1)
    close(local_contrastive_similarity(r, longer, F.pad(keep, (0, 3))), plain)


def test_mean_is_sum_less_the_count(rng, close):
    r, u, keep = tensors(rng)
    made = local_contrastive_similarity(r, u, keep, reduction="mean", similarity_temperature=3.0)
    total = local_contrastive_similarity(r, u, keep, similarity_temperature=3.0)
    close(made, total - 3.0 * torch.tensor([math.log(n) for n in keep.sum(1)], dtype=torch.float64))


def test_gradcheck_contract_and_compile(rng, close):
    r, u, keep = tensors(rng)
    leaves = r.clone().requires_grad_(), u.clone().requires_grad_()
    scales = [1.5, 4.0, 5.0]
    torch.autograd.gradcheck(lambda r, u: local_similarity_op(r, u, keep, scales), leaves)
    torch.library.opcheck(local_similarity_op, (*(x.float().detach().requires_grad_() for x in leaves), keep, scales))
    torch.library.opcheck(local_similarity_backward_op, (torch.ones(3, 2).double(), r, u, keep, scales))
    compiled = torch.compile(local_contrastive_similarity, backend="aot_eager", fullgraph=True)
    grad = torch.ones(3, 2, dtype=torch.float64)
    eager = run(lambda r, u: local_contrastive_similarity(r, u, keep), r, u, grad)
    for ours, true in zip(run(lambda r, u: compiled(r, u, keep), r, u, grad), eager, strict=True):
        close(ours, true)


def test_memory_is_a_tenth_of_all_pairs_at_once(monkeypatch, rng):
    monkeypatch.setattr("mm.kernels.contrastive.BLOCK_BYTES", {"cpu": 1, "cuda": 1})
    r = torch.randn(6, 256, 8, generator=rng, requires_grad=True)
    u = torch.randn(6, 32, 8, generator=rng, requires_grad=True)

    def call(impl):
        return peak_bytes(lambda: torch.autograd.grad(local_contrastive_similarity(r, u, impl=impl).sum(), (r, u)))

    assert call("blocked") < 0.1 * call("reference")


def test_errors_say_what_is_wrong(rng):
    r, u, keep = tensors(rng)
    with pytest.raises(ValueError, match=r"regions must be \(B, S, E\)"):
        local_contrastive_similarity(r, u[..., :3], keep)
    with pytest.raises(ValueError, match="'sum' or 'mean', got 'max'"):
        local_contrastive_similarity(r, u, keep, reduction="max")
    with pytest.raises(ValueError, match="keep must be boolean"):
        local_contrastive_similarity(r, u, keep.float())


@pytest.mark.gpu
def test_on_a_gpu(rng, close):
    r, u, keep = (x.cuda() for x in tensors(rng, torch.float32, volumes=4, regions=50, texts=3, length=9, width=32))
    grad = torch.randn(4, 3, generator=rng).cuda()
    exact = run(lambda r, u: local_contrastive_similarity(r, u, keep, impl="reference"), r.double(), u.double(), grad)
    made = run(lambda r, u: local_contrastive_similarity(r, u, keep), r, u, grad)
    for ours, true in zip(made, exact, strict=True):
        close(ours, true, torch.float32)
