"""The codebook on the sphere: definition, gradients, closed forms of its steps, start, revival, two processes."""

import pytest
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F

from mm.codecs.semantic_vq import CosineQuantizer, CosineQuantizerConfig
from mm.codecs.semantic_vq.quantizer import spherical_kmeans


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def quantizer(size=16, width=8, **options):
    return CosineQuantizer(CosineQuantizerConfig(size=size, width=width, **{"kmeans_steps": 0, **options}))


def test_the_index_is_the_largest_cosine_and_scale_does_not_matter():
    q, x = quantizer(), draw(5, 40, 8)
    expected = F.cosine_similarity(x[..., None, :], q.codebook, dim=-1).argmax(-1)
    assert torch.equal(q.encode(x), expected)
    assert torch.equal(q.eval()(7 * x).codes, expected)
    torch.testing.assert_close(q(x).quantized, q.codebook[expected])


def test_straight_through_is_the_identity_on_unit_vectors():
    q = quantizer(commitment=0.0).eval()
    x, upstream = draw(6, 8).requires_grad_(), draw(6, 8, seed=1)
    (q(x).quantized * upstream).sum().backward()
    (expected,) = torch.autograd.grad((F.normalize(x, dim=-1) * upstream).sum(), x)
    torch.testing.assert_close(x.grad, expected)
    assert not list(q.parameters())


def test_commitment_is_the_closed_form_with_the_old_codebook():
    q, x = quantizer(commitment=0.5), draw(30, 8)
    old = q.codebook.clone()
    cosine = F.cosine_similarity(x[:, None], old[None], dim=-1).amax(1)
    torch.testing.assert_close(q.train()(x).loss, 0.5 * ((2 - 2 * cosine) / 8).mean())
    assert not torch.equal(q.codebook, old), "nothing moved, so old and new cannot be told apart"


@pytest.mark.parametrize("count", [1, 1000])
def test_a_used_code_moves_by_the_same_share_whatever_its_count(count):
    q = quantizer(decay=0.9)
    old = q.codebook.clone()
    z = F.normalize(old[3] + 0.05 * draw(8), dim=-1)
    q(z.expand(count, -1))
    expected = old.clone()
    expected[3] = F.normalize(0.9 * old[3] + 0.1 * z, dim=-1)
    torch.testing.assert_close(q.codebook, expected)
    assert torch.equal(q.codebook[4:], old[4:]) and torch.equal(q.codebook[:3], old[:3])


def test_rows_stay_unit_vectors():
    q = quantizer(revive_after=3)
    for seed in range(100):
        q(draw(20, 8, seed=seed))
    torch.testing.assert_close(q.codebook.norm(dim=-1), torch.ones(16))


def test_evaluation_and_encode_change_nothing():
    q = quantizer(kmeans_steps=3)
    before = {key: value.clone() for key, value in q.state_dict().items()}
    q.encode(draw(9, 8))
    q.eval()(draw(9, 8))
    assert all(torch.equal(value, before[key]) for key, value in q.state_dict().items())


def test_the_first_batch_starts_the_codebook_and_a_loaded_one_is_left_alone():
    centres = F.normalize(draw(4, 8), dim=-1)
    x = F.normalize(centres.repeat(50, 1) + 0.02 * draw(200, 8, seed=1), dim=-1)
    q = quantizer(size=40, kmeans_steps=10)
    assert q(x).loss * 8 < 0.01 and q.started
    other = quantizer(size=40, kmeans_steps=10)
    other.load_state_dict(q.state_dict())
    other(draw(200, 8, seed=5))
    cosine = (other.codebook * q.codebook).sum(-1)
    assert cosine.min() > 0.99, "a restart would have thrown the codes elsewhere"


def test_kmeans_takes_fewer_vectors_than_centres_and_keeps_empty_seeds():
    z = F.normalize(draw(3, 8), dim=-1)
    centres = spherical_kmeans(z, 7, steps=5, generator=torch.Generator().manual_seed(0))
    assert centres.shape == (7, 8)
    assert ((centres @ z.T).amax(1) > 1 - 1e-5).all(), "every centre is one of the vectors"
    with pytest.raises(ValueError, match="nothing to cluster"):
        spherical_kmeans(z[:0], 7, steps=5, generator=torch.Generator())


@pytest.mark.parametrize("revive_after", [0, 20])
def test_identical_rows_recover_only_with_revival(revive_after):
    q = quantizer(size=32, revive_after=revive_after)
    axis, beside = torch.eye(8)[:2]
    q.codebook[:] = beside  # away from the data: the code that moves first stays the nearest to all of it
    for seed in range(200):
        codes = q(0.5 * draw(64, 8, seed=seed) + 4 * axis).codes
    alive = len(codes.unique())
    assert alive > 16 if revive_after else alive == 1


def test_codes_outside_the_codebook_are_refused():
    with pytest.raises(ValueError, match=r"0\.\.15, got 2\.\.16"):
        quantizer().lookup(torch.tensor([2, 16]))


BATCHES = F.normalize(draw(4, 60, 8), dim=-1)


WIDE = {"size": 64}
"""More codes than vectors: some stay idle."""


def trained(rows, **options):
    q = quantizer(kmeans_steps=5, **options)
    for batch in BATCHES:
        q(batch[rows])
    return q.codebook, q.cluster_size, q.idle


def worker(rank, address, folder):
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    half = slice(0, 25) if rank == 0 else slice(25, 60)  # unequal shares
    torch.save([trained(half), trained(half, **WIDE), trained(half, **WIDE, revive_after=1)], f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_equal_one_on_all_vectors(tmp_path):
    mp.spawn(worker, (f"file://{tmp_path}/store", tmp_path), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for ours, theirs in zip(first, second, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    for found, expected in zip(first[0], trained(slice(None)), strict=True):
        torch.testing.assert_close(found, expected)
    assert not torch.equal(first[1][0], first[2][0]), "nothing was revived, so nothing is tested"
