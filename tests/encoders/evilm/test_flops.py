"""Parameters and multiply-adds of the presets against the table they were planned with, and against VIOLETv2."""

from __future__ import annotations

import pytest

from mm.encoders.evilm.flops import body_flops, body_parameters, rows

PLANNED = {
    "evilm_30m": (30.0, 10.6),
    "evilm_35m_dual": (35.3, 10.8),
    "evilm_swin_t": (50.8, 21.2),
    "violetv2": (197.5, 86.2),
    "violet_v1": (158.6, 58.5),
    "debug": (2.5, 0.42),
}
"""Million parameters; giga multiply-adds for four frames of 224 x 224 pixels and 32 words."""


@pytest.mark.parametrize("name", PLANNED)
def test_presets_cost_what_was_planned(name):
    parameters, macs = PLANNED[name]
    assert body_parameters(name) / 1e6 == pytest.approx(parameters, rel=0.01)
    assert body_flops(name, 4, 32) / 2e9 == pytest.approx(macs, rel=0.01)


def test_the_saving_against_the_ancestor():
    found = {row["setting"]: row for row in rows()}
    default = found["evilm_30m, 4 frames, 32 words, against VIOLETv2"]
    assert default["saving"] >= 0.87 and default["parameter_share"] < 0.155
    slim = found["evilm_slim, 4 frames, 32 words, against VIOLETv2"]
    assert slim["saving"] >= 0.948
