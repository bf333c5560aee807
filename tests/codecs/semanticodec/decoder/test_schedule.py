"""Schedules, the identities of v, and the published step rule."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
import torch

from mm.codecs.semanticodec.config import DiffusionConfig
from mm.codecs.semanticodec.ddim import ddim, sigmas_of, sub_schedule
from mm.codecs.semanticodec.dpm import dpm_solver
from mm.codecs.semanticodec.schedule import (
    NoiseSchedule,
    betas_of,
    sampling_timesteps,
    schedule_tables,
    with_schedule_of,
)

LINEAR = DiffusionConfig(schedule="linear")
COSINE = DiffusionConfig(schedule="cosine")


@pytest.mark.parametrize("config", [LINEAR, COSINE], ids=lambda c: c.schedule)
def test_all_tables_equal_the_published_ones(config, parity, close):
    expected = parity("schedule")
    prefix = f"expected.{config.schedule}."
    close(torch.from_numpy(betas_of(config)), expected[prefix + "betas_float64"], 1e-12)
    tables = schedule_tables(betas_of(config))
    shared = [name for name in tables if prefix + name in expected]
    assert len(shared) == (12 if config.schedule == "linear" else 10)
    for name in shared:
        close(tables[name], expected[prefix + name], 1e-6)


@pytest.mark.parametrize("steps", [5, 25, 50])
def test_the_steps_of_ddim_equal_the_published_ones(steps, parity, close):
    expected = parity("schedule")
    chosen = sub_schedule(NoiseSchedule(LINEAR).alphas_cumprod, steps)
    prefix = f"expected.ddim.S{steps}."
    assert chosen.timesteps == expected[prefix + "timesteps"].tolist()
    close(chosen.alphas, expected[prefix + "alphas"])
    close(chosen.alphas_prev, expected[prefix + "alphas_prev"])
    close(sigmas_of(chosen, 1.0), expected[prefix + "eta1.0.sigmas"])
    assert not sigmas_of(chosen, 0.0).any()


def test_step_counts_and_failures_follow_the_published_table(data):
    table = json.loads((data / "semanticodec_tables.json").read_text())["ddim_steps"]
    failing = {s for low, high in table["requested_that_fail_with_index_error"] for s in range(low, high + 1)}
    for steps in range(1, 1001):
        if steps in failing:
            with pytest.raises(ValueError, match="trailing spacing"):
                sampling_timesteps(steps)
        else:
            assert sampling_timesteps(steps)[-1] < 1000
    for requested, stride, actual, largest in table["rows"]:
        if requested not in failing:
            chosen = sampling_timesteps(requested)
            assert (chosen[0], len(chosen), chosen[-1]) == (1, actual, largest)
            assert all(b - a == stride for a, b in pairwise(chosen))


def test_the_hint_of_a_failing_step_count_works():
    for steps in (3, 9, 27, 101, 300, 700):
        with pytest.raises(ValueError) as caught:
            sampling_timesteps(steps)
        sampling_timesteps(int(str(caught.value).split("use ")[1].split()[0]))


@pytest.mark.parametrize("steps", [1, 3, 7, 25, 999, 1000])
def test_trailing_steps_start_at_the_end_and_keep_their_number(steps):
    chosen = sampling_timesteps(steps, spacing="trailing")
    assert len(chosen) == len(set(chosen)) == steps
    assert chosen[-1] == 999 and chosen[0] >= 0


def test_the_three_parametrisations_agree_with_each_other_and_with_the_reference(parity, close):
    fixture, schedule = parity("diffusion"), NoiseSchedule(LINEAR)
    x0, noise, t = fixture["q.x0"], fixture["q.noise"], fixture["t"]
    x, v = schedule.noisy(x0, noise, t), schedule.velocity(x0, noise, t)
    close(x, fixture["expected.q_sample"])
    close(v, fixture["expected.v_target"])
    again, eps = schedule.clean_and_noise(x, v, t)
    close(again, x0, 1e-6)
    close(eps, noise, 1e-6)
    clean, eps = schedule.clean_and_noise(fixture["x_T"], fixture["expected.v_cond"], t)
    close(clean, fixture["expected.x0_from_v"])
    close(eps, fixture["expected.eps_from_v"])


def test_half_precision_leaves_the_table_alone():
    schedule = NoiseSchedule(COSINE)
    before = schedule.alphas_cumprod.clone()
    assert torch.equal(schedule.half().bfloat16().alphas_cumprod, before)


def test_a_table_knows_its_name():
    for config in (LINEAR, COSINE):
        assert with_schedule_of(COSINE, NoiseSchedule(config).alphas_cumprod).schedule == config.schedule
    other = NoiseSchedule(DiffusionConfig(schedule="linear", linear_end=0.02))
    assert with_schedule_of(COSINE, other.alphas_cumprod).schedule == "stored"


def perfect(schedule, clean):
    """A network that knows the clean latents."""

    def denoise(x, timesteps):
        signal, spread = schedule.levels(timesteps, x)
        noise = (x - signal * clean) / spread
        return signal * noise - spread * clean

    return denoise


@pytest.mark.parametrize(("steps", "spacing"), [(1, "trailing"), (4, "leading"), (25, "leading"), (25, "trailing")])
@pytest.mark.parametrize("config", [LINEAR, COSINE], ids=lambda c: c.schedule)
def test_a_perfect_network_gives_the_clean_latents_in_any_number_of_steps(steps, config, spacing, close):
    generator = torch.Generator().manual_seed(0)
    clean, x = (torch.randn(2, 3, 4, 4, generator=generator) for _ in range(2))
    schedule = NoiseSchedule(config)
    denoise = perfect(schedule, clean)
    # DDIM ends at abar_0, not at 1: a little of the noise stays, as in the released code.
    left = float((1 - schedule.alphas_cumprod[0]).sqrt())
    assert (ddim(denoise, x, schedule, steps=steps, spacing=spacing) - clean).abs().max() < 5 * left + 1e-3
    close(dpm_solver(denoise, x, schedule, steps=steps, spacing=spacing), clean, 2e-3)


def test_single_steps_with_noise_have_the_variance_of_the_posterior():
    schedule = NoiseSchedule(LINEAR)
    chosen = sub_schedule(schedule.alphas_cumprod, 1000, "trailing")
    posterior = schedule_tables(betas_of(LINEAR))["posterior_variance"].double()
    torch.testing.assert_close(sigmas_of(chosen, 1.0).square()[1:], posterior[1:], rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("sampler", ["ddim", "ddim with noise", "dpm++"])
def test_gaussian_data_comes_back_with_its_mean_and_variance(sampler):
    """The best network for independent N(m, s^2) data in closed form: samples must have that distribution."""
    mean, spread_of_data, schedule = 0.7, 0.5, NoiseSchedule(LINEAR)

    def denoise(x, timesteps):
        signal, spread = schedule.levels(timesteps, x)
        gain = signal * spread_of_data**2 / (signal**2 * spread_of_data**2 + spread**2)
        clean = mean + gain * (x - signal * mean)
        return signal * (x - signal * clean) / spread - spread * clean

    generator = torch.Generator().manual_seed(0)
    draw = lambda: torch.randn(1, 1, 200, 200, generator=generator)  # noqa: E731
    if sampler == "dpm++":
        found = dpm_solver(denoise, draw(), schedule, steps=200, spacing="trailing")
    else:
        eta = 1.0 if "noise" in sampler else 0.0
        steps = 500 if eta else 200
        found = ddim(denoise, draw(), schedule, steps=steps, eta=eta, noise=draw, spacing="trailing")
    assert abs(float(found.mean()) - mean) < 0.02
    assert abs(float(found.std()) - spread_of_data) < 0.02


def test_noise_without_a_source_is_refused():
    schedule = NoiseSchedule(LINEAR)
    with pytest.raises(ValueError, match="source of noise"):
        ddim(lambda x, t: x, torch.zeros(1, 1, 2, 2), schedule, steps=2, eta=1.0)
