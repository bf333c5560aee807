"""The benchmark harness: memory that is really counted, verdicts that can be missed, a header that tells the truth."""

import json

import torch

from mm.kernels import bench
from mm.kernels.bench import Case, Contest, Target
from mm.kernels.measure import Ceilings, Timing, peak_bytes, time_alternating

MIB = 2**20


def test_peak_bytes_counts_what_lives_at_the_same_time():
    def overlapping():
        first = torch.zeros(MIB // 4)
        second = first + 1
        return first, second

    def one_after_another():
        for _ in range(5):
            torch.zeros(MIB // 4)

    assert 2 * MIB <= peak_bytes(overlapping) < 2.1 * MIB
    assert MIB <= peak_bytes(one_after_another) < 1.1 * MIB


def test_candidates_alternate():
    order = []
    times = time_alternating(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, device="cpu", budget_s=0, warmup=0, least=3
    )
    assert "".join(order[2:]) == "ababab"  # the first two calls estimate the number of rounds
    assert all(0 <= t.p20 <= t.median <= t.p80 for t in times.values())


def test_verdicts_are_met_and_missed():
    times = {"ours": Timing(2.0, 1, 3), "peer": Timing(5.0, 4, 6)}
    peaks = {"ours": 10, "peer": 100}
    targets = [
        Target(kind="speedup", limit=2, peer="peer"),
        Target(kind="speedup", limit=3, peer="peer"),
        Target(kind="overhead", limit=0.5, peer="peer"),
        Target(kind="memory", limit=0.05, peer="peer"),
        Target(kind="bandwidth", limit=0.8),
    ]
    words = [verdict.split(":")[0] for verdict in bench._verdicts(targets, times, peaks, share=0.9)]
    assert words == ["met", "MISSED", "met", "MISSED", "met"]
    slow, over = {**times, "ours": Timing(6.0, 5, 7)}, Target(kind="overhead", limit=0.1, peer="peer")
    assert bench._verdicts([over], slow, peaks, 0)[0].startswith("MISSED: +20.0%")
    assert bench._verdicts([over], {"ours": Timing(2.0, 1, 3)}, peaks, 0) == ["no figure against peer"]


def test_a_peer_that_fails_is_named_and_left_out():
    def broken():
        raise RuntimeError("unsupported shape")

    x = torch.randn(8, 8)
    contest = Contest(ours=lambda: x @ x, peers={"slow": lambda: x @ x, "broken": broken}, bytes=1, flops=1)
    case = Case(kernel="square", shape="8x8", build=lambda device: contest)
    rows = bench.run_case(case, "cpu", Ceilings(1.0, {"float32": 1.0}), budget_s=0.0)
    assert [row.candidate for row in rows] == ["ours", "slow"]
    assert rows[0].verdict == "broken does not run here (RuntimeError)"


def test_the_table_says_that_no_gpu_was_used(monkeypatch, capsys):
    x = torch.randn(64, 64)
    case = Case(
        kernel="square",
        shape="64x64",
        build=lambda device: Contest(
            ours=lambda: x @ x, peers={"slow": lambda: x @ x}, bytes=3 * 64 * 64 * 4, flops=2 * 64**3
        ),
        targets={"cpu": (Target(kind="speedup", limit=1e9, peer="slow"),)},
    )
    gpu_only = Case(kernel="square", shape="huge", build=case.build, devices=("cuda",))
    module = type("Cases", (), {"cases": staticmethod(lambda: [case, gpu_only])})
    monkeypatch.setattr(bench, "CASE_MODULES", {"square": "anything"})
    monkeypatch.setattr(bench, "import_module", lambda name: module)
    assert bench.main(["--device", "cpu", "--budget", "0.01"]) == 0
    text = capsys.readouterr().out
    assert "No GPU was used" in text and "| square | 64x64 | slow |" in text and "MISSED" in text and "huge" not in text
    bench.main(["--device", "cpu", "--budget", "0.01", "--json"])
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["candidate"] for row in rows] == ["ours", "slow"]
