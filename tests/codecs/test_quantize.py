"""The EMA quantiser: published steps, closed forms, gradients, revival, two processes."""

import pytest
import torch
import torch.multiprocessing as mp

from mm.codecs.quantize import VectorQuantizer, VectorQuantizerConfig, perplexity


def published(data, case):
    quantizer = VectorQuantizer(VectorQuantizerConfig(size=16, width=10))
    for ours, theirs in {"codebook": "embed", "cluster_size": "cluster_size", "cluster_sum": "embed_avg"}.items():
        getattr(quantizer, ours).copy_(data[f"{case}.weights._codebook.{theirs}"][0])
    return quantizer.train()


@pytest.mark.parametrize("case, steps", [("loaded", 3), ("fresh", 2)])
def test_published_training_steps(parity, case, steps, relative_error):
    data = parity("vq_ema")
    quantizer = published(data, case)
    for step in range(steps):
        expected = {
            key: data[f"{case}.step{step}.expected.{key}"]
            for key in ("cluster_size", "commit_loss", "embed", "embed_avg", "grad_x", "indices", "quantized")
        }
        x = data[f"{case}.step{step}.x"].clone().requires_grad_()
        found = quantizer(x)
        assert torch.equal(found.codes, expected["indices"])
        assert relative_error(found.quantized.detach(), expected["quantized"]) < 1e-5
        assert relative_error(found.loss.detach(), expected["commit_loss"]) < 1e-5
        ((found.quantized * data[f"{case}.step{step}.upstream"]).sum() + found.loss).backward()
        assert relative_error(x.grad, expected["grad_x"]) < 1e-5
        assert relative_error(quantizer.cluster_size, expected["cluster_size"][0]) < 1e-5
        assert relative_error(quantizer.cluster_sum, expected["embed_avg"][0]) < 1e-5
        for own, theirs in zip(quantizer.codebook, expected["embed"][0], strict=True):  # rows differ by 10^5
            assert relative_error(own, theirs) < 1e-5
    found = quantizer.eval()(data[f"{case}.eval.x"])
    assert torch.equal(found.codes, data[f"{case}.eval.expected.indices"])
    assert relative_error(found.quantized, data[f"{case}.eval.expected.quantized"]) < 1e-5


def test_gradient_is_straight_through_and_the_codebook_gets_none():
    quantizer = VectorQuantizer(VectorQuantizerConfig(size=8, width=4, commitment=0.0))
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    upstream = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    found = quantizer(x)
    (found.quantized * upstream).sum().backward()
    assert torch.equal(x.grad, upstream)
    assert not list(quantizer.parameters())


def test_a_constant_batch_is_followed_in_closed_form():
    quantizer = VectorQuantizer(VectorQuantizerConfig(size=2, width=1, decay=0.9, epsilon=1e-12))
    quantizer.codebook.copy_(torch.tensor([[0.0], [10.0]]))
    quantizer.cluster_sum.copy_(quantizer.codebook)
    x = torch.tensor([[1.0], [3.0], [9.0]])
    for step in range(1, 6):
        quantizer(x)
        left = 0.9**step
        size = torch.tensor([left + 2 * (1 - left), left + (1 - left)])
        total = torch.tensor([0 * left + 4 * (1 - left), 10 * left + 9 * (1 - left)])
        torch.testing.assert_close(quantizer.cluster_size, size)
        torch.testing.assert_close(quantizer.codebook[:, 0], total / size)
    for _ in range(200):
        quantizer(x)
    torch.testing.assert_close(quantizer.codebook, torch.tensor([[2.0], [9.0]]))


def test_padding_moves_nothing():
    x = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    keep = torch.arange(5).expand(2, 5) < torch.tensor([[5], [2]])
    batch, alone = (VectorQuantizer(VectorQuantizerConfig(size=8, width=4, revive_below=1.0)) for _ in range(2))
    noisy = torch.where(keep[..., None], x, 100.0)
    found, expected = batch(noisy, keep), alone(x[keep])
    torch.testing.assert_close(batch.codebook, alone.codebook)
    torch.testing.assert_close(found.loss, expected.loss)
    assert batch.codebook.abs().max() < 50


def test_evaluation_changes_nothing():
    quantizer = VectorQuantizer(VectorQuantizerConfig(size=8, width=4)).eval()
    before = {key: value.clone() for key, value in quantizer.state_dict().items()}
    quantizer(torch.randn(9, 4))
    assert all(torch.equal(value, before[key]) for key, value in quantizer.state_dict().items())


@pytest.mark.parametrize("revive, alive", [(0.0, 1), (0.5, 20)])
def test_dead_codes_come_back_only_with_revival(revive, alive):
    """All codes but one start far away from the data."""
    quantizer = VectorQuantizer(VectorQuantizerConfig(size=32, width=4, revive_below=revive))
    quantizer.codebook[1:] += 1000
    quantizer.cluster_sum.copy_(quantizer.codebook)
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        codes = quantizer(torch.randn(64, 4, generator=generator)).codes
    assert (len(codes.unique()) > alive) == (revive > 0)


def test_cosine_codes_and_outputs_are_unit_vectors():
    quantizer = VectorQuantizer(VectorQuantizerConfig(size=8, width=4, metric="cosine"))
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        x = torch.randn(20, 4, generator=generator) * torch.rand(20, 1, generator=generator) * 9
        found = quantizer(x)
        torch.testing.assert_close(found.quantized.norm(dim=-1), torch.ones(20))
        torch.testing.assert_close(quantizer.codebook.norm(dim=-1), torch.ones(8))
    quantizer.eval()
    expected = torch.nn.functional.cosine_similarity(x[:, None], quantizer.codebook[None], dim=-1).argmax(1)
    assert torch.equal(quantizer.encode(x), expected)
    assert torch.equal(quantizer.encode(5 * x), expected)


def test_codes_outside_the_codebook_are_refused():
    quantizer = VectorQuantizer(VectorQuantizerConfig(size=8, width=4))
    with pytest.raises(ValueError, match=r"0\.\.7, got 2\.\.8"):
        quantizer.lookup(torch.tensor([2, 8]))


def test_perplexity():
    assert perplexity(torch.zeros(5, dtype=torch.int64), 8) == 1
    assert perplexity(torch.arange(8), 8) == pytest.approx(8)


@pytest.mark.parametrize("decay, in_use", [(0.9, True), (1 - 1e-9, False)])
def test_moving_averages_spread_the_codes_and_without_them_nothing_moves(decay, in_use):
    """Sixteen clusters far from a fresh codebook: perplexity grows only while the codebook follows its inputs."""
    quantizer = VectorQuantizer(VectorQuantizerConfig(size=16, width=4, decay=decay, revive_below=0.05 * in_use))
    generator = torch.Generator().manual_seed(0)
    centres = 5 + 3 * torch.randn(16, 4, generator=generator)
    for step in range(150):
        x = centres.repeat(8, 1) + 0.1 * torch.randn(128, 4, generator=generator)
        found = quantizer(x)
        if step == 0:
            start = perplexity(found.codes, 16), float(found.loss)
    assert start[0] < 4
    assert (perplexity(found.codes, 16) > 10) == in_use
    assert (float(found.loss) < 0.2 * start[1]) == in_use


BATCHES = torch.randn(3, 16, 4, generator=torch.Generator().manual_seed(0))


def trained(revive, rows=slice(None)):
    quantizer = VectorQuantizer(VectorQuantizerConfig(size=8, width=4, revive_below=revive))
    for batch in BATCHES:
        quantizer(batch[rows])
    return quantizer.codebook, quantizer.cluster_size


def _worker(rank, address, folder):
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    torch.save([trained(revive, slice(rank, None, 2)) for revive in (0.0, 0.95)], f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_hold_one_codebook(tmp_path):
    mp.spawn(_worker, (f"file://{tmp_path}/store", tmp_path), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for (codebook, size), (other_codebook, other_size) in zip(first, second, strict=True):
        assert torch.equal(codebook, other_codebook) and torch.equal(size, other_size)
    for found, expected in zip(first[0], trained(0.0), strict=True):  # with revival each run picks other inputs
        torch.testing.assert_close(found, expected)
    assert not torch.equal(first[0][0], first[1][0]), "nothing was revived, so nothing is tested"
