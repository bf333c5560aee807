"""Run after check_installed.py, with the medical extra: the shipped VELVET-Med finds scans by reports and segments."""

from __future__ import annotations

import torch

import mm
from mm.medical.phantom_reports import report
from mm.medical.phantoms import draw_case, render
from mm.medical.velvet.data import windowed

cases = [draw_case(seed) for seed in range(0, 16, 2)]
model = mm.load("velvet_tiny")
size = model.config.vision.volume_size
with torch.inference_mode():
    volumes = torch.stack([windowed(render(case, size).hu) for case in cases])
    found = model(volumes, **model.tokenize([report(case) for case in cases]))
    own = (model.similarity(found.volume, found.text).argmax(1) == torch.arange(len(cases))).sum()
    print(f"velvet_tiny finds {int(own)} of {len(cases)} scans by their reports")
    assert own >= 5

    scan = render(cases[0], 64)
    labels = mm.load("velvet_tiny_segmenter")(windowed(scan.hu)[None]).argmax(1)[0]
    right = (labels == torch.from_numpy(scan.labels)).float().mean()
    print(f"velvet_tiny_segmenter is right in {float(right):.3f} of the voxels")
    assert right > 0.97
