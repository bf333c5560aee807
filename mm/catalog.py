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

TABS = Registry("tab of the app")
"""Tab name -> `f() -> None` that adds its components; `about` is "Title: what it shows"."""

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


MODELS.add("flame_tiny", "mm.encoders.flame.presets:flame_tiny")
MODELS.add("semanticodec_tiny", "mm.codecs.semanticodec.presets:semanticodec_tiny")
MODELS.add("semantic_vq_tiny", "mm.codecs.semantic_vq.presets:semantic_vq_tiny")
MODELS.add("semantic_vq_tiny_pixels", "mm.codecs.semantic_vq.presets:semantic_vq_tiny_pixels")
MODELS.add("semantic_vq_base", "mm.codecs.semantic_vq.presets:semantic_vq_base")
MODELS.add("evilm_tiny", "mm.encoders.evilm.presets:evilm_tiny")
MODELS.add("evilm_tiny_slim", "mm.encoders.evilm.presets:evilm_tiny_slim")
MODELS.add("evilm_30m", "mm.encoders.evilm.presets:evilm_30m")
MODELS.add("evilm_35m_dual", "mm.encoders.evilm.presets:evilm_35m_dual")
MODELS.add("evilm_slim", "mm.encoders.evilm.presets:evilm_slim")
MODELS.add("evilm_swin_t", "mm.encoders.evilm.presets:evilm_swin_t")
MODELS.add("lavi_tiny", "mm.encoders.lavi.presets:lavi_tiny")
MODELS.add("llava_tiny", "mm.zoo.presets:llava_tiny")
MODELS.add("openecad_tiny", "mm.cad.presets:openecad_tiny")
MODELS.add("llava_tiny_256", "mm.zoo.presets:llava_tiny_256")
MODELS.add("tiny_lm", "mm.zoo.bases:tiny_lm")
MODELS.add("tiny_vit", "mm.zoo.bases:tiny_vit")
MODELS.add("tiny_vit_256", "mm.zoo.bases:tiny_vit_256")
MODELS.add("visionthink_tiny", "mm.pruning.visionthink.model:visionthink_tiny")
MODELS.add("velvet_bt_sv", "mm.medical.velvet.presets:velvet_bt_sv")
MODELS.add("velvet_tiny", "mm.medical.velvet.presets:velvet_tiny")
MODELS.add("velvet_tiny_segmenter", "mm.medical.velvet.presets:velvet_tiny_segmenter")
MODELS.add("velvet_tiny_writer", "mm.medical.tasks.presets:velvet_tiny_writer")

DATA.add("flame", "mm.encoders.flame.data:FlamePairs")
DATA.add("flame_records", "mm.encoders.flame.records:FlameRecords")
DATA.add("procedural", "mm.data.module:ProceduralData")
DATA.add("parts", "mm.cad.data:PartData")
DATA.add("cad_records", "mm.cad.records:ProgramRecords")
DATA.add("folder", "mm.data.folder_module:FolderData")
DATA.add("caption_store", "mm.encoders.flame.store_predict:CaptionStoreData")
DATA.add("oracle_scenes", "mm.codecs.semantic_vq.data:OracleScenes")
DATA.add("evilm_clips", "mm.encoders.evilm.data:MovingClips")
DATA.add("sounds", "mm.codecs.semanticodec.sound_data:SoundData")
DATA.add("sound_folder", "mm.codecs.semanticodec.sound_folder:SoundFolder")
DATA.add("weave_traces", "mm.pruning.visionthink.data:TraceData")
DATA.add("weave_prompts", "mm.pruning.visionthink.data:PromptData")
DATA.add("phantoms", "mm.medical.velvet.data:PhantomData")
DATA.add("evilm_videos", "mm.encoders.evilm.records:VideoData")
DATA.add("phantom_dialogues", "mm.medical.tasks.phantom_dialogues:DialogueData")
DATA.add("medical_folder", "mm.medical.folder_data:MedicalFolder")
DATA.add("labelled_scans", "mm.medical.labelled_data:LabelledScans")

MODULES.add("flame_embed", "mm.encoders.flame.store_predict:CaptionEmbedding")
MODULES.add("flame", "mm.encoders.flame.module:FlameModule")
MODULES.add("lavi", "mm.encoders.lavi.module:LaviModule")
MODULES.add("cad", "mm.cad.module:CadModule")
MODULES.add("cad_lora", "mm.cad.lora_module:CadLoraModule")
MODULES.add("llava", "mm.training.host:HostModule")
MODULES.add("evilm", "mm.encoders.evilm.module:EViLMModule")
MODULES.add("semantic_vq", "mm.codecs.semantic_vq.module:SemanticVQModule")
MODULES.add("semanticodec_audiomae", "mm.codecs.semanticodec.audiomae_module:AudioMaeModule")
MODULES.add("semanticodec_codebooks", "mm.codecs.semanticodec.codebook_module:CodebookModule")
MODULES.add("semanticodec_joint", "mm.codecs.semanticodec.joint_module:JointModule")
MODULES.add("semanticodec_vae", "mm.codecs.semanticodec.vae_module:VaeModule")
MODULES.add("semanticodec_vocoder", "mm.codecs.semanticodec.vocoder_module:VocoderModule")
MODULES.add("visionthink_warm_start", "mm.pruning.visionthink.module:WarmStartModule")
MODULES.add("visionthink", "mm.pruning.visionthink.module:GrpoModule")
MODULES.add("velvet", "mm.medical.velvet.module:VelvetModule")
MODULES.add("velvet_segment", "mm.medical.tasks.segment_module:SegmentModule")
MODULES.add("velvet_own", "mm.medical.folder_module:OwnVelvetModule")
MODULES.add("velvet_writer", "mm.medical.tasks.writer_module:WriterModule")

BENCH_FLOPS.add("lavi", "mm.encoders.lavi.flops:rows")
BENCH_FLOPS.add("evilm", "mm.encoders.evilm.flops:rows")
BENCH_FLOPS.add("flame", "mm.encoders.flame.flops:rows")
BENCH_FLOPS.add("flowcut", "mm.pruning.flops:rows")
BENCH_LATENCY.add("evilm", "mm.encoders.evilm.latency:rows")
BENCH_LATENCY.add("flame", "mm.encoders.flame.latency:rows")
BENCH_FLOPS.add("semanticodec", "mm.codecs.semanticodec.flops:rows")
BENCH_LATENCY.add("flowcut", "mm.pruning.latency:rows")
BENCH_LATENCY.add("flame_store", "mm.encoders.flame.store_bench:rows")
BENCH_LATENCY.add("lavi", "mm.encoders.lavi.latency:rows")
BENCH_LATENCY.add("semanticodec", "mm.codecs.semanticodec.latency:rows")

TOUR.add("flame", "mm.encoders.flame.tour:page", about="FLAME: a frozen language model as text tower")
TOUR.add("lavi", "mm.encoders.lavi.tour:page", about="LaVi: vision through the norms")
TOUR.add("flowcut", "mm.pruning.tour:page", about="FlowCut: fewer visual tokens")
TOUR.add("evilm", "mm.encoders.evilm.tour:page", about="E-ViLM: hidden video named by semantic codes")
TOUR.add("velvet", "mm.medical.tour:page", about="VELVET-Med: scans and reports, on drawn phantoms")
TOUR.add("visionthink", "mm.pruning.visionthink.tour:page", about="VisionThink: a first look, the rest on request")
TOUR.add("cad", "mm.cad.tour:page", about="OpenECAD: a picture becomes an editable CAD program")
TOUR.add("semanticodec", "mm.codecs.semanticodec.tour:page", about="SemantiCodec: sound as a few tokens per second")

TABS.add("ask", "mm.app.tabs.ask:build", about="Ask: a question about a picture, to LaVi and to concatenation")
TABS.add("prune", "mm.app.tabs.prune:build", about="Prune: fewer visual tokens, what is kept and what it costs")
TABS.add("adaptive", "mm.app.tabs.adaptive:build", about="Adaptive: a first look, the full picture on request")
TABS.add("audio", "mm.app.tabs.audio:build", about="Audio: sound as tokens and back")
TABS.add("search", "mm.app.tabs.search:build", about="Search: name and find pictures by free text")
TABS.add("cad", "mm.app.tabs.cad:build", about="CAD: a picture of a part becomes a program you can edit")
TABS.add(
    "video", "mm.app.tabs.video:build", about="Video: codes over frames, a question about a clip, clips found by text"
)
TABS.add("ct", "mm.app.tabs.ct:build", about="CT: organs, nearest reports and a draft report of a scan, for research")

EVALUATORS.add("tiny_lm", "mm.zoo.evaluate:language")
EVALUATORS.add("tiny_vit", "mm.zoo.evaluate:tower")
EVALUATORS.add("llava_tiny", "mm.zoo.evaluate:answering")
EVALUATORS.add("openecad_tiny", "mm.cad.evaluate:evaluate")
EVALUATORS.add("tiny_vit_256", "mm.zoo.evaluate:tower_wide")
EVALUATORS.add("llava_tiny_256", "mm.zoo.evaluate:answering_wide")
EVALUATORS.add("flame_tiny", "mm.encoders.flame.trial:evaluate")
EVALUATORS.add("semanticodec_tiny", "mm.codecs.semanticodec.evaluate:evaluate")
EVALUATORS.add("lavi_tiny", "mm.encoders.lavi.evaluate:evaluate")
EVALUATORS.add("semantic_vq_tiny", "mm.codecs.semantic_vq.evaluate:evaluate")
EVALUATORS.add("semantic_vq_tiny_pixels", "mm.codecs.semantic_vq.evaluate:evaluate")
EVALUATORS.add("evilm_tiny", "mm.encoders.evilm.evaluate:evaluate")
EVALUATORS.add("evilm_tiny_slim", "mm.encoders.evilm.evaluate:evaluate")
EVALUATORS.add("visionthink_tiny", "mm.pruning.visionthink.evaluate:evaluate")
EVALUATORS.add("velvet_tiny", "mm.medical.velvet.evaluate:evaluate")
EVALUATORS.add("velvet_tiny_writer", "mm.medical.tasks.writer_scores:evaluate")
EVALUATORS.add("velvet_tiny_segmenter", "mm.medical.velvet.transfer:evaluate")

VERBS.add("models", "mm.verbs.models:run", about="list the model presets and the trained weights that ship")
VERBS.add("tour", "mm.app.tour:main", about="run every shipped system once and write one HTML page")
VERBS.add("app", "mm.app.demo:main", about="open the toolkit in a browser, one tab per modality")
VERBS.add("fit", "mm.training.cli:fit", about="train a model from a run configuration")
VERBS.add("validate", "mm.training.cli:validate", about="evaluate a training run on its validation data")
VERBS.add("test", "mm.training.cli:test", about="evaluate a training run on its test data")
VERBS.add("predict", "mm.training.cli:predict", about="write the predictions of a training run")
VERBS.add("ask", "mm.verbs.ask:run", about="ask a vision-language model about one or more pictures")
VERBS.add("prune", "mm.pruning.command:run", about="answer with fewer visual tokens: FlowCut and its peers")
VERBS.add("flame", "mm.encoders.flame.command:run", about="embed captions once; classify and search pictures by text")
VERBS.add("codec", "mm.codecs.semanticodec.command:run", about="sound to discrete tokens and back: SemantiCodec")
VERBS.add("video", "mm.encoders.evilm.command:run", about="find and question videos by text; frames to codes: E-ViLM")
VERBS.add("cad", "mm.cad.command:run", about="CAD programs: generate, build, convert, score")
VERBS.add("medical", "mm.medical.command:run", about="CT scans: segment, search, ask, draft reports, de-identify")
VERBS.add("zoo", "mm.verbs.zoo:run", about="list or re-evaluate the trained weights that ship")
VERBS.add("bench", "mm.verbs.bench:run", about="measure FLOPs, latency or kernels")
