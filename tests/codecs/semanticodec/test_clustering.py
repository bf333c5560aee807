"""k-means against scikit-learn and its invariants; clustering and pretraining as stages."""

import lightning
import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from torch.utils.data import DataLoader

from mm.codecs.semanticodec.audiomae_module import AudioMaeModule, MaskedDecoder, MaskedDecoderConfig
from mm.codecs.semanticodec.codebook_module import CodebookModule
from mm.codecs.semanticodec.config import AudioMaeConfig, QuantizerConfig
from mm.codecs.semanticodec.kmeans import kmeans, lloyd_step, train_codebooks
from mm.codecs.semanticodec.sound_data import SoundDataConfig, sound_rows
from mm.data.split import Split
from mm.training.module import OptimizerConfig


def blobs(centres=6, per=50, width=5, spread=0.1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    means = 3 * torch.randn(centres, width, generator=generator)
    x = means.repeat_interleave(per, 0) + spread * torch.randn(centres * per, width, generator=generator)
    return x[torch.randperm(len(x), generator=generator)], means


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_steps_equal_those_of_scikit_learn():
    x, _ = blobs(spread=2.0)
    start = x[:6].clone()
    centres = start
    for _ in range(30):
        centres, inertia = lloyd_step(x, centres)
    expected = KMeans(6, init=start.numpy(), n_init=1, max_iter=30, tol=0, algorithm="lloyd").fit(x.numpy())
    np.testing.assert_allclose(centres.numpy(), expected.cluster_centers_, atol=1e-4)
    assert inertia * len(x) == pytest.approx(expected.inertia_, rel=1e-3)


@pytest.mark.parametrize("start", ["random", "plusplus"])
def test_inertia_falls_in_every_step_and_with_more_centres(start):
    x, _ = blobs(spread=1.0)
    last = []
    for size in (4, 16, 64):
        found = kmeans([x], size, generator=seeded(), start=start)
        assert all(after <= before + 1e-6 for before, after in zip(found.inertia, found.inertia[1:], strict=False))
        last.append(found.inertia[-1])
    assert last[0] > last[1] > last[2]


def test_plusplus_finds_separate_clusters():
    x, means = blobs()
    found = kmeans([x], 6, generator=seeded(1), start="plusplus")
    assert (torch.cdist(found.centres, means).amin(1) < 0.1).all() and torch.cdist(means, found.centres).amin(
        1
    ).max() < 0.1


def test_a_short_last_chunk_is_left_out_and_chunks_warm_start():
    x, _ = blobs()
    short = torch.full((3, 5), 100.0)
    one = kmeans([x], 6, generator=seeded())
    two = kmeans([x, x, short], 6, generator=seeded())
    assert two.chunks == 2 and torch.allclose(one.centres, two.centres)
    assert len(two.inertia) == len(one.inertia) + 1, "the second chunk must start from the centres of the first"


def test_an_empty_centre_stays():
    centres = torch.tensor([[0.0], [50.0]])
    moved, _ = lloyd_step(torch.tensor([[1.0], [3.0]]), centres)
    assert moved.tolist() == [[2.0], [50.0]]


def test_bad_input():
    with pytest.raises(ValueError, match="nothing to cluster"):
        kmeans([], 4, generator=seeded())
    with pytest.raises(ValueError, match="4 centres need at least as many"):
        kmeans([torch.zeros(3, 2)], 4, generator=seeded())
    with pytest.raises(ValueError, match="start must be"):
        kmeans([torch.zeros(9, 2)], 4, generator=seeded(), start="best")
    with pytest.raises(ValueError, match="speech, music"):
        train_codebooks({"general": lambda: [torch.zeros(9, 2)]}, QuantizerConfig(semantic_vocabs=(4,)))


def test_a_rare_domain_keeps_its_own_centres():
    """One codebook over everything spends nothing on a domain with 3 % of the vectors; parts per domain do."""
    config = QuantizerConfig(semantic_vocabs=(16,))
    generator = seeded()
    pools = {
        "general": torch.randn(2000, 6, generator=generator) * 3,
        "speech": torch.randn(2000, 6, generator=generator) * 3 + 5,
        "music": torch.randn(120, 6, generator=generator) + torch.tensor([-9.0, 9, -9, 9, -9, 9]),
    }
    codebook = train_codebooks({name: lambda x=x: [x] for name, x in pools.items()}, config, max_steps=50)[16]
    single = kmeans([torch.cat(list(pools.values()))], 16, generator=seeded(), max_steps=50).centres
    ours, theirs = (float(torch.cdist(pools["music"], table).amin(1).square().mean()) for table in (codebook, single))
    assert ours < 0.8 * theirs
    first, end = config.domain_ranges(16)["music"]
    assert (torch.cdist(pools["music"], codebook).argmin(1) >= first).all() and end == 16


# --- stages ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def batch():
    return sound_rows(SoundDataConfig(), Split("train").seeds[:12])


def trainer(**settings):
    return lightning.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        limit_val_batches=0,
        **settings,
    )


def test_clustering_stage_fills_all_codebooks_by_domain(batch):
    module = CodebookModule(max_steps=5)
    before = {name: value.clone() for name, value in module.model.state_dict().items()}
    many = {name: value.repeat_interleave(2, 0) for name, value in batch.items()}
    many["waves"] = many["waves"] + 0.01 * torch.randn(many["waves"].shape, generator=seeded())
    trainer(max_epochs=1).fit(module, DataLoader([batch, many], batch_size=None))
    changed = {name for name, value in module.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"encoder.semantic.codebook_{vocab}" for vocab in (64, 128, 256)}
    module.eval()
    loss, logs = module.compute_loss(batch)
    assert 0 < logs["lost_256"] < logs["lost_64"] < 1 and loss == logs["lost_256"]


def test_pretraining_learns_to_paint_hidden_patches(batch):
    module = AudioMaeModule(optimizer=OptimizerConfig(lr=3e-3), hidden_share=0.5)
    extractor = module.model.encoder.audiomae
    before = {name: value.clone() for name, value in module.model.named_parameters()}
    module.eval()
    start = float(module.compute_loss(batch)[0].detach())
    module.train()
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=3e-3)
    torch.manual_seed(0)
    for _ in range(25):
        optimizer.zero_grad()
        module.compute_loss(batch)[0].backward()
        optimizer.step()
    module.eval()
    assert float(module.compute_loss(batch)[0]) < 0.6 * start
    changed = {name for name, value in module.model.named_parameters() if not torch.equal(value, before[name])}
    expected = {f"encoder.audiomae.{name}" for name, _ in extractor.named_parameters()} - {"encoder.audiomae.pos_embed"}
    assert changed == expected


def test_hidden_patches_cannot_be_seen():
    """The decoder gets visible patches only: what is hidden must not change its input, and places must be kept."""
    config = AudioMaeConfig(width=16, depth=1, num_heads=2, averaged_blocks=1, segment_frames=64, mel_bins=64)
    decoder = MaskedDecoder(MaskedDecoderConfig(width=16, depth=1, num_heads=2), config).eval()
    features = torch.randn(1, 1 + 3, 16, generator=seeded())
    visible = torch.tensor([[4, 9, 1]])
    order = torch.tensor([2, 0, 1])
    shuffled = torch.cat([features[:, :1], features[:, 1:][:, order]], dim=1)
    torch.testing.assert_close(decoder(features, visible), decoder(shuffled, visible[:, order]))
    assert not torch.allclose(decoder(features, visible), decoder(features, torch.tensor([[4, 9, 2]])))


def test_bad_share_is_refused():
    with pytest.raises(ValueError, match="hidden_share"):
        AudioMaeModule(hidden_share=1.0)
