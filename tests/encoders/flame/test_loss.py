"""The two losses: reference numbers, closed forms, invariances, and two processes against one."""

from __future__ import annotations

import pytest
import torch
import torch.multiprocessing as mp
from torch import distributed
from torch.nn import functional as F

from mm.encoders.flame import multi_positive_nce_loss, multi_positive_sigmoid_loss
from tests.encoders.flame.conftest import read, relative

SCALE, BIAS = 10.0, -10.0


@pytest.fixture
def pairs():
    """Five unit images and 5 x 3 unit texts."""
    generator = torch.Generator().manual_seed(0)
    images, texts = (F.normalize(torch.randn(*s, 8, generator=generator), dim=-1) for s in ((5,), (5, 3)))
    return images, texts


def test_reference_numbers():
    tensors, _ = read("flame_image.safetensors")
    images, texts = tensors["loss.image"], tensors["loss.text"]
    found = multi_positive_sigmoid_loss(images, texts, SCALE, BIAS)
    assert relative(found, tensors["loss.expected.sigmoid_scale10_biasm10"]) < 1e-5
    assert relative(multi_positive_nce_loss(images, texts, SCALE), tensors["loss.expected.nce_scale10"]) < 1e-5


def test_explicit_double_sum(pairs):
    images, texts = pairs
    total = 0.0
    for i, image in enumerate(images):
        for j, text in enumerate(texts.flatten(0, 1)):
            sign = 1.0 if j // 3 == i else -1.0
            total -= F.logsigmoid(sign * (SCALE * image @ text + BIAS))
    assert relative(multi_positive_sigmoid_loss(images, texts, SCALE, BIAS), total / 15) < 1e-5


def test_one_positive_is_siglip_and_clip(pairs):
    images, texts = pairs[0], pairs[1][:, :1]
    logits = SCALE * images @ texts[:, 0].T
    siglip = -F.logsigmoid((2 * torch.eye(5) - 1) * (logits + BIAS)).sum() / 5
    clip = (F.cross_entropy(logits, torch.arange(5)) + F.cross_entropy(logits.T, torch.arange(5))) / 2
    assert relative(multi_positive_sigmoid_loss(images, texts, SCALE, BIAS), siglip) < 1e-6
    assert relative(multi_positive_nce_loss(images, texts, SCALE), clip) < 1e-6


def sigmoid(images, texts):
    return multi_positive_sigmoid_loss(images, texts, SCALE, BIAS)


def nce(images, texts):
    return multi_positive_nce_loss(images, texts, SCALE)


@pytest.mark.parametrize("loss", [sigmoid, nce])
def test_order_does_not_matter_but_pairing_does(pairs, loss):
    images, texts = pairs
    order = torch.randperm(5, generator=torch.Generator().manual_seed(1))
    assert relative(loss(images[order], texts[order]), loss(images, texts)) < 1e-6
    assert relative(loss(images, texts.roll(1, 0)), loss(images, texts)) > 1e-3


def test_order_of_the_positives_of_an_image_does_not_matter(pairs):
    """Only under the sigmoid loss: the NCE compares the p-th texts of all images with each other."""
    images, texts = pairs
    shuffled = torch.stack([row.roll(number, 0) for number, row in enumerate(texts)])
    assert relative(sigmoid(images, shuffled), sigmoid(images, texts)) < 1e-6
    assert relative(nce(images, shuffled), nce(images, texts)) > 1e-3


def test_chunks_change_nothing(pairs):
    images, texts = (x.clone().requires_grad_() for x in pairs)
    dense = multi_positive_sigmoid_loss(images, texts, SCALE, BIAS)
    expected = torch.autograd.grad(dense, (images, texts))
    chunked = multi_positive_sigmoid_loss(images, texts, SCALE, BIAS, chunk=2)
    assert relative(chunked, dense) < 1e-6
    for found, right in zip(torch.autograd.grad(chunked, (images, texts)), expected, strict=True):
        assert relative(found, right) < 1e-5


def test_messages(pairs):
    with pytest.raises(ValueError, match="of the same width"):
        multi_positive_sigmoid_loss(pairs[0], pairs[1].flatten(0, 1)[:14], SCALE)
    with pytest.raises(ValueError, match="'ring' or 'gather'"):
        multi_positive_sigmoid_loss(*pairs, SCALE, exchange="star")


WORLD = 2
CASES = ("ring", "gather", "nce")


def compute(case, images, texts, scale, bias):
    if case == "nce":
        return multi_positive_nce_loss(images, texts, scale)
    return multi_positive_sigmoid_loss(images, texts, scale, bias, exchange=case)


def one_process(rank, port, folder, images, texts):
    """Loss and gradients of this process' half, averaged over processes as data-parallel training does."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=WORLD)
    found = {}
    for case in CASES:
        size = len(images) // WORLD
        own = [x[rank * size : (rank + 1) * size].clone().requires_grad_() for x in (images, texts)]
        scalars = [torch.tensor(value, requires_grad=True) for value in (SCALE, BIAS)]
        loss = compute(case, *own, *scalars)
        loss.backward()
        for value in (loss.detach(), *(s.grad for s in scalars if s.grad is not None)):
            distributed.all_reduce(value)
            value /= WORLD
        found[case] = (loss.detach(), *(x.grad / WORLD for x in own), *(s.grad for s in scalars))
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    """Loss and every gradient, also that of the texts: each process holds half of the pairs."""
    generator = torch.Generator().manual_seed(1)
    images, texts = (F.normalize(torch.randn(*s, 8, generator=generator), dim=-1) for s in ((6,), (6, 3)))
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(one_process, (port, str(tmp_path), images, texts), nprocs=WORLD)
    halves = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]
    for case in CASES:
        whole = [x.clone().requires_grad_() for x in (images, texts)]
        scalars = [torch.tensor(value, requires_grad=True) for value in (SCALE, BIAS)]
        loss = compute(case, *whole, *scalars)
        loss.backward()
        assert relative(halves[0][case][0], loss.detach()) < 1e-5, case
        for number, right in enumerate((x.grad for x in whole), 1):
            assert relative(torch.cat([half[case][number] for half in halves]), right) < 1e-5, case
        for number, scalar in enumerate(scalars, 3):
            if scalar.grad is not None:
                assert relative(halves[0][case][number], scalar.grad) < 1e-5, case
