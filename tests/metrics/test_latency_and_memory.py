"""Timing and memory harness on known work."""

import time

import pytest
import torch

from mm.metrics import latency
from mm.metrics.latency import as_dicts, measure
from mm.metrics.memory import measure_memory


class Clock:
    """A clock that moves only when a candidate says that it worked."""

    def __init__(self, monkeypatch):
        self.now_s = 0.0
        monkeypatch.setattr(latency.time, "perf_counter", lambda: self.now_s)

    def work(self, seconds):
        self.now_s += seconds


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def test_candidates_take_turns_and_warm_up_is_not_counted(clock):
    order = []
    rows = measure({n: lambda n=n: (order.append(n), clock.work(0.001)) for n in "abc"}, repeats=3, warmup=2)
    timed = order[2 * 3 + 3 :]  # after the warm-up and one calibrating call each
    assert "".join(timed) == "abc" + "bca" + "cab"
    assert [row.repeats for row in rows] == [3, 3, 3]


def test_ratio_and_spread_of_known_durations(clock):
    # warm-up (slow, uncounted), calibration, then 10 samples of which two are slow
    durations = iter([1.0, 0.002] + [0.002] * 8 + [0.02] * 2)
    candidates = {"long": lambda: clock.work(0.008), "uneven": lambda: clock.work(next(durations))}
    rows = {row.candidate: row for row in measure(candidates, repeats=10, warmup=1)}
    assert rows["long"].ratio == 1.0 and rows["long"].median_ms == pytest.approx(8.0)
    assert rows["uneven"].median_ms == pytest.approx(2.0)  # a mean would be 5.6
    assert rows["uneven"].ratio == pytest.approx(0.25)
    assert rows["uneven"].p20_ms == pytest.approx(2.0)
    assert rows["uneven"].p80_ms == pytest.approx(
        2.0 + 0.2 * 18.0
    )  # rank 7.2 of 0 to 9: a fifth of the way from the fast to the slow


def test_a_short_call_is_repeated_inside_a_sample_and_reported_per_call(clock):
    calls = []
    (row,) = measure({"short": lambda: (calls.append(1), clock.work(1e-5))}, repeats=4, warmup=0)
    assert len(calls) == 1 + 4 * 20  # 20 calls fill the shortest sample of 0.2 ms
    assert row.median_ms == pytest.approx(0.01)


def test_the_real_clock_sees_a_real_pause():
    (row,) = measure({"pause": lambda: time.sleep(0.005)}, repeats=2, warmup=0)
    assert row.p20_ms >= 5.0


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
