"""Training stages on made sounds: they learn, train only their part, and leave a whole codec behind."""

from __future__ import annotations

import pytest
import torch

from mm.codecs.semanticodec.codec import SemantiCodec
from mm.codecs.semanticodec.config import (
    AudioMaeConfig,
    DecoderConfig,
    EncoderConfig,
    QuantizerConfig,
    SemantiCodecConfig,
    UNetConfig,
    VaeConfig,
    VocoderConfig,
)
from mm.codecs.semanticodec.joint_module import JointModule
from mm.codecs.semanticodec.patch_discriminator import PatchDiscriminator, balanced_weight, hinge_loss
from mm.codecs.semanticodec.sound_data import SoundDataConfig, sound_rows
from mm.codecs.semanticodec.sounds import DOMAINS, make_sound
from mm.codecs.semanticodec.stage import frozen
from mm.codecs.semanticodec.vae_module import VaeModule
from mm.codecs.semanticodec.vocoder_module import VocoderModule
from mm.codecs.semanticodec.wave_discriminators import WaveDiscriminator, discriminator_loss, generator_losses
from mm.data.split import Split

CONFIG = SemantiCodecConfig(
    encoder=EncoderConfig(
        audiomae=AudioMaeConfig(width=16, depth=2, num_heads=2, averaged_blocks=1, segment_frames=32, mel_bins=64),
        token_rate=50,
        lstm_layers=1,
        lstm_hidden=16,
    ),
    quantizer=QuantizerConfig(semantic_vocabs=(16, 32), acoustic_vocab=16),
    decoder=DecoderConfig(
        vae=VaeConfig(width=8, res_blocks=1, norm_groups=4, multipliers=(1, 2), mel_bins=32),
        unet=UNetConfig(
            context_width=72,
            width=16,
            multipliers=(1, 2),
            res_blocks=1,
            attention_factors=(2,),
            head_width=8,
            norm_groups=4,
        ),
        vocoder=VocoderConfig(
            width=32, rates=(8, 5, 4), kernels=(16, 15, 8), res_kernels=(3,), dilations=(1,), mel_bins=32
        ),
        feature_width=64,
        position_width=8,
        window_tokens=4,
        window_frames=32,
        overlap_frames=16,
    ),
)
STAGES = {
    "vae": (VaeModule, {"adversarial_share": 0.5, "discriminator_width": 8}, "decoder.vae."),
    "vocoder": (VocoderModule, {"frames": 16, "discriminator_width": 4, "stft_weight": 1.0}, "decoder.vocoder."),
    "joint": (JointModule, {}, ("encoder.acoustic.", "decoder.unet.")),
}


@pytest.fixture
def codec(tmp_path):
    """Folder of a random codec of 0.32-s segments."""
    return str(SemantiCodec(CONFIG).save_pretrained(tmp_path / "codec"))


@pytest.fixture(scope="module")
def batch():
    rows = sound_rows(SoundDataConfig(samples=CONFIG.decoder.window_samples), range(3))
    assert rows["waves"].shape == (3, 5120 + 240)
    return rows


def build(name, codec, **changes):
    cls, settings, _ = STAGES[name]
    return cls(codec=codec, **(settings | changes))


@pytest.mark.parametrize("name", list(STAGES))
def test_a_stage_trains_its_part_and_nothing_else(name, codec, batch):
    module, part = build(name, codec), STAGES[name][2]
    if name == "joint":  # zero-initialised layers would hide the layers before them
        for parameter in module.model.decoder.unet.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.1)
    loss, logs = module.compute_loss(batch)
    loss.backward()
    assert (
        loss.isfinite()
        and torch.tensor([float(torch.as_tensor(value).detach()) for value in logs.values()]).isfinite().all()
    )
    trained = {key for key, value in module.model.named_parameters() if value.grad is not None and value.grad.any()}
    wanted = {key for key, value in module.model.named_parameters() if value.requires_grad}
    assert wanted and all(key.startswith(part) for key in wanted)
    # A bias in front of a norm with one channel per group, or of attention keys, cannot move anything.
    assert len(trained) > 0.9 * len(wanted) and trained <= wanted
    discriminator = getattr(module, "discriminator", None)
    if discriminator is not None:
        assert all(p.grad is not None and p.grad.any() for p in discriminator.parameters() if p.dim() > 1)


@pytest.mark.parametrize(
    ("name", "metric", "share"), [("vae", "mel_l1", 0.6), ("vocoder", "mel_l1", 0.8), ("joint", "v_mse", 0.5)]
)
def test_one_batch_can_be_learned(name, metric, share, codec, batch):
    """One batch with one draw of noise, noise levels and crops, the same in every step: nothing but fitting is left."""
    changes = {"vae": {"adversarial_share": 0.0}, "vocoder": {"discriminator_width": 0}, "joint": {}}[name]
    module = build(name, codec, **changes)
    if name == "joint":  # a trained autoencoder is sure of its latents; a random one would add unit noise to them
        with torch.no_grad():
            module.model.decoder.vae.to_moments.weight[8:] = 0
            module.model.decoder.vae.to_moments.bias[8:] = -10
            module.on_train_batch_start(batch, 0)
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=5e-3)
    found = []
    for _ in range(21):
        torch.manual_seed(1)
        loss, logs = module.compute_loss(batch)
        found.append(float(logs[metric].detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert found[-1] < share * found[0], f"{metric} from {found[0]:.3f} to {found[-1]:.3f}"


@pytest.mark.parametrize("name", list(STAGES))
def test_evaluation_repeats_itself(name, codec, batch):
    module = build(name, codec).eval()
    with torch.no_grad():
        first, again = (module.compute_loss(batch)[1] for _ in range(2))
    assert {key: float(value) for key, value in first.items()} == {key: float(value) for key, value in again.items()}
    if name == "joint":
        assert "v_mse_shuffled" in first


def test_runs_through_the_command_and_hands_its_weights_on(codec, tmp_path):
    from mm.training.cli import fit

    out = tmp_path / "run"
    size = ["--data.config.samples", "5120", "--data.config.batch_size", "2", "--trainer.limit_val_batches", "0"]
    steps = ["--trainer.max_steps", "2", "--ema", "0.9", "--model.codec", codec, "--trainer.accelerator", "cpu"]
    assert fit(["--config", "semanticodec/diffusion_tiny", "--out", str(out), *size, *steps]) == 0
    before, after = SemantiCodec.from_pretrained(codec), SemantiCodec.from_pretrained(out / "model")
    assert float(after.decoder.scale_factor) != 1.0
    changed = [key for key, value in after.state_dict().items() if not torch.equal(value, before.state_dict()[key])]
    assert any(key.startswith("decoder.unet.") for key in changed)
    assert not any(key.startswith(("decoder.vae.", "decoder.vocoder.", "encoder.audiomae.")) for key in changed)


def test_the_scale_brings_latents_to_unit_spread(codec, batch):
    module = build("joint", codec)
    module.on_train_batch_start(batch, 0)
    latents = module._posterior_sample(batch) * module.model.decoder.scale_factor
    assert abs(float(latents.std()) - 1) < 0.1
    before = float(module.model.decoder.scale_factor)
    module.on_train_batch_start({"waves": batch["waves"] * 0.1}, 0)
    assert float(module.model.decoder.scale_factor) == before, "a scale that is set stays"


def test_some_conditions_are_dropped_while_training_only(codec):
    module = build("joint", codec)
    features = torch.ones(2000, 4, 64)
    torch.manual_seed(0)
    dropped = module._dropped(features)
    share = float((dropped == 0).all(-1).all(-1).float().mean())
    assert abs(share - CONFIG.decoder.diffusion.condition_dropout) < 0.03
    assert set(dropped.amax((1, 2)).tolist()) == {0.0, 1.0}
    assert torch.equal(module.eval()._dropped(features), features)


def test_every_vocabulary_is_drawn_in_training_and_the_last_in_evaluation(codec):
    module, fixed = build("joint", codec), build("joint", codec, random_vocabulary=False)
    torch.manual_seed(0)
    assert {module._vocabulary() for _ in range(40)} == {16, 32}
    assert {fixed._vocabulary() for _ in range(10)} == {32}
    assert {module.eval()._vocabulary() for _ in range(10)} == {32}


def test_discriminators_learn_and_generators_see_them_fixed():
    torch.manual_seed(0)
    judge, real = WaveDiscriminator(4, periods=(2, 3)), torch.randn(2, 1, 1024)
    fake = torch.tanh(torch.randn(2, 1, 1024)).cumsum(-1).sin().requires_grad_()
    with frozen(judge):
        adversarial, matching = generator_losses(judge(real), judge(fake))
        (adversarial + matching).backward()
    assert fake.grad.abs().sum() > 0 and all(p.grad is None for p in judge.parameters())
    assert all(p.requires_grad for p in judge.parameters())
    optimizer = torch.optim.Adam(judge.parameters(), lr=5e-3)
    losses = []
    for _ in range(6):
        loss = discriminator_loss(judge(real), judge(fake.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


def test_the_adversarial_weight_balances_gradients():
    last = torch.ones(3, requires_grad=True)
    weight = balanced_weight((4 * last).sum(), (2 * last).sum(), last, share=0.5)
    assert abs(float(weight) - 1.0) < 1e-3
    assert float(hinge_loss(torch.tensor([2.0]), torch.tensor([-2.0]))) == 0
    assert PatchDiscriminator(8)(torch.zeros(2, 1, 32, 32)).shape[:2] == (2, 1)


def test_sounds_are_functions_of_their_seed_and_splits_differ():
    train, test = Split("train").seeds, Split("test").seeds
    for seed in range(6):
        first, again = make_sound(train[seed], 8000), make_sound(train[seed], 8000)
        assert (first.wave == again.wave).all() and first.domain == DOMAINS[train[seed] % 3]
        assert abs(first.wave).max() <= 0.6 and first.wave.std() > 1e-3
        assert not (first.wave == make_sound(test[seed], 8000).wave).all()
    last = make_sound(train[5599], 20_720)  # its last syllable begins one sample before the end
    assert last.domain == "speech" and last.wave.std() > 1e-3
    with pytest.raises(ValueError, match="domain must be one of"):
        make_sound(0, 100, "birds")


def test_wrong_stages_are_refused(codec, batch):
    with pytest.raises(ValueError, match=r"frames must lie in 4\.\.32"):
        build("vocoder", codec, frames=64)
    with pytest.raises(ValueError, match="builds a"):
        VaeModule(preset="tiny_lm")
    with pytest.raises(ValueError, match="segments of 5120 samples"):
        build("vae", codec).compute_loss({"waves": batch["waves"][:, :1000]})
