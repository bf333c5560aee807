"""Timing and memory harness on known work."""

import time

import pytest
import torch

from mm.metrics.latency import as_dicts, measure
from mm.metrics.memory import measure_memory


def test_candidates_take_turns_and_warm_up_is_not_counted():
    order = []
    rows = measure({n: lambda n=n: (order.append(n), time.sleep(0.001)) for n in "abc"}, repeats=3, warmup=2)
    timed = order[2 * 3 + 3 :]  # after the warm-up and one calibrating call each
    assert "".join(timed) == "abc" + "bca" + "cab"
    assert [row.repeats for row in rows] == [3, 3, 3]


def test_ratio_and_spread_of_known_sleeps():
    durations = iter([0.002] * 8 + [0.02] * 2)  # warm-up, calibration, then 8 samples of which two are slow

    def uneven():
        time.sleep(next(durations))

    rows = {
        row.candidate: row
        for row in measure({"long": lambda: time.sleep(0.008), "uneven": uneven}, repeats=8, warmup=1)
    }
    assert rows["long"].ratio == 1.0
    assert 2.0 <= rows["uneven"].median_ms < 4.0  # a mean would be near 6.5
    assert rows["uneven"].ratio < 0.5
    assert rows["uneven"].p20_ms <= rows["uneven"].median_ms <= rows["uneven"].p80_ms


def test_a_short_call_is_repeated_inside_a_sample_and_reported_per_call():
    calls = 0

    def short():
        nonlocal calls
        calls += 1

    (row,) = measure({"short": short}, repeats=4, warmup=0)
    assert calls > 4 * 10
    assert row.median_ms < 0.01


def test_rows_are_plain_data():
    (row,) = as_dicts(measure({"a": lambda: None}, repeats=1))
    assert list(row) == ["candidate", "median_ms", "p20_ms", "p80_ms", "ratio", "repeats"]


@pytest.mark.parametrize(("candidates", "repeats"), [({}, 3), ({"a": lambda: None}, 0)])
def test_nothing_to_measure_is_an_error(candidates, repeats):
    with pytest.raises(ValueError, match="needs candidates and repeats"):
        measure(candidates, repeats=repeats)


def test_peak_counts_what_is_alive_at_once():
    def chain():
        x = torch.zeros(1000)  # 4000 bytes
        x = x + 1  # old and new: 8000
        x = x * 2  # old and new: 8000
        return x.sum()

    use = measure_memory(chain)
    assert use.peak_bytes == 8000
    assert use.kept_bytes == 4


def test_peak_grows_when_intermediates_are_kept():
    def kept():
        return [torch.zeros(1000) for _ in range(5)]

    use = measure_memory(kept)
    assert use.peak_bytes == use.kept_bytes == 20_000


def test_views_in_place_work_and_earlier_tensors_cost_nothing():
    outside = torch.zeros(1000)

    def views():
        outside.view(10, 100).t().add_(1)
        return outside[:10]

    assert measure_memory(views).peak_bytes == 0


def test_activations_saved_for_backward_are_counted():
    weight = torch.ones(100, 100, requires_grad=True)
    x = torch.ones(50, 100)

    def forward():
        return (x @ weight).exp().exp()  # exp saves its result: 20,000 bytes each

    with torch.no_grad():
        without = measure_memory(forward).peak_bytes
    assert without == 40_000
    assert measure_memory(forward).kept_bytes == 40_000


def test_meta_tensors_are_counted_too():
    use = measure_memory(lambda: torch.empty(1000, 1000, device="meta") @ torch.empty(1000, 1000, device="meta"))
    assert use.peak_bytes == 12_000_000
