"""Everything that can be asked for by name, in one table that imports nothing.

A new system adds its lines here: model presets, training modules, tour pages and benchmark rows.
"""

from __future__ import annotations

from mm.registry import Registry

MODELS = Registry("model")
"""Preset name -> factory `f(**overrides) -> nn.Module` with random weights; the result has `save_pretrained`."""

MODULES = Registry("training module")
"""Short name used in run configs -> LightningModule class."""

DATA = Registry("data module")
"""Short name used in run configs -> LightningDataModule class."""

TOUR = Registry("tour page")
"""Page name -> `f(page: mm.app.tour.Page) -> None`; shown in `make tour` in the order of `TOUR_ORDER`."""

BENCH_FLOPS = Registry("FLOP benchmark")
"""System name -> `f() -> list[dict]` with keys setting, ours_tflop, baseline_tflop, saving."""

BENCH_LATENCY = Registry("latency benchmark")
"""System name -> `f(*, device, repeats) -> list[dict]`."""

EVALUATORS = Registry("zoo evaluator")
"""Shipped model name -> `f(model, *, seed) -> dict[str, float]`, re-run by `mm zoo verify`."""

VERBS = Registry("command")
"""Word after `mm` -> `run(argv: list[str]) -> int`, listed by `mm --help` with its `about` line, in this order."""


def list_models(pattern: str = "*") -> list[str]:
    """Names of the model presets that match a shell pattern.

    Example:
        >>> "lavi_tiny" in list_models("lavi*")
        True
    """
    return MODELS.names(pattern)


MODELS.add("lavi_tiny", "mm.encoders.lavi.presets:lavi_tiny")
MODELS.add("llava_tiny", "mm.zoo.presets:llava_tiny")
MODELS.add("tiny_lm", "mm.zoo.bases:tiny_lm")
MODELS.add("tiny_vit", "mm.zoo.bases:tiny_vit")
MODELS.add("velvet_bt_sv", "mm.medical.velvet.presets:velvet_bt_sv")
MODELS.add("velvet_tiny", "mm.medical.velvet.presets:velvet_tiny")

DATA.add("procedural", "mm.data.module:ProceduralData")
DATA.add("folder", "mm.data.folder_module:FolderData")
DATA.add("phantoms", "mm.medical.velvet.data:PhantomData")

MODULES.add("lavi", "mm.encoders.lavi.module:LaviModule")
MODULES.add("llava", "mm.training.host:HostModule")
MODULES.add("velvet", "mm.medical.velvet.module:VelvetModule")

BENCH_FLOPS.add("lavi", "mm.encoders.lavi.flops:rows")
BENCH_FLOPS.add("flowcut", "mm.pruning.flops:rows")
BENCH_LATENCY.add("flowcut", "mm.pruning.latency:rows")
BENCH_LATENCY.add("lavi", "mm.encoders.lavi.latency:rows")

TOUR.add("lavi", "mm.encoders.lavi.tour:page", about="LaVi: vision through the norms")

EVALUATORS.add("tiny_lm", "mm.zoo.evaluate:language")
EVALUATORS.add("tiny_vit", "mm.zoo.evaluate:tower")
EVALUATORS.add("llava_tiny", "mm.zoo.evaluate:answering")
EVALUATORS.add("lavi_tiny", "mm.encoders.lavi.evaluate:evaluate")
EVALUATORS.add("velvet_tiny", "mm.medical.velvet.evaluate:evaluate")

VERBS.add("models", "mm.verbs.models:run", about="list the model presets and the trained weights that ship")
VERBS.add("tour", "mm.app.tour:main", about="run every shipped system once and write one HTML page")
VERBS.add("fit", "mm.training.cli:fit", about="train a model from a run configuration")
VERBS.add("validate", "mm.training.cli:validate", about="evaluate a training run on its validation data")
VERBS.add("test", "mm.training.cli:test", about="evaluate a training run on its test data")
VERBS.add("predict", "mm.training.cli:predict", about="write the predictions of a training run")
VERBS.add("ask", "mm.verbs.ask:run", about="ask a vision-language model about one or more pictures")
VERBS.add("prune", "mm.pruning.command:run", about="answer with fewer visual tokens: FlowCut and its peers")
VERBS.add("medical", "mm.medical.command:run", about="CT scans: inspect, de-identify, embed")
VERBS.add("zoo", "mm.verbs.zoo:run", about="list or re-evaluate the trained weights that ship")
VERBS.add("bench", "mm.verbs.bench:run", about="measure FLOPs, latency or kernels")
