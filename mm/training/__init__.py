"""Lightning base module, callbacks, optimiser groups and the training command line.

Names are imported when they are used: Lightning alone takes seconds.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_PLACES = {
    "EMA": "mm.training.ema",
    "FeatureCache": "mm.training.feature_cache",
    "FeatureJob": "mm.training.feature_job",
    "FeatureWriter": "mm.training.feature_writer",
    "GroupRule": "mm.training.param_groups",
    "OptimizerConfig": "mm.training.module",
    "TrainingModule": "mm.training.module",
    "schedule_factor": "mm.training.schedule",
}
__all__ = [
    "EMA",
    "FeatureCache",
    "FeatureJob",
    "FeatureWriter",
    "GroupRule",
    "OptimizerConfig",
    "TrainingModule",
    "schedule_factor",
]


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'mm.training' has no attribute {name!r}")
