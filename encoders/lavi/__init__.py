"""LaVi: vision enters a language model through its normalisation layers (arXiv:2506.16691).

    lavi = attach(hf_causal_lm, LaviConfig(vision_width=1024))
    context = lavi.encode_vision(features)                 # once per image
    lavi(input_ids, visual=context).logits                 # as often as wanted
    lavi.generate(input_ids, visual=context)
    detach(lavi)

The sequence inside the language model stays text only. `mm.encoders.lavi.model.LaviModel` adds a vision tower and a
tokenizer to it.
"""

from mm.encoders.lavi.attach import attach, detach
from mm.encoders.lavi.checkpoint import attach_pretrained, load_adapter, save_adapter
from mm.encoders.lavi.config import LaviConfig
from mm.encoders.lavi.context import VisualContext
from mm.encoders.lavi.diagnostics import inspect, token_strength, word_patch_map
from mm.encoders.lavi.groups import parameter_groups, set_trainable
from mm.encoders.lavi.lavi import Lavi
from mm.encoders.lavi.placement import strip_placeholders
from mm.encoders.lavi.prefix_cache import PrefixCache
from mm.encoders.lavi.viln import ViLN

__all__ = [
    "Lavi",
    "LaviConfig",
    "PrefixCache",
    "ViLN",
    "VisualContext",
    "attach",
    "attach_pretrained",
    "detach",
    "inspect",
    "load_adapter",
    "parameter_groups",
    "save_adapter",
    "set_trainable",
    "strip_placeholders",
    "token_strength",
    "word_patch_map",
]
