"""Which activation function a tower's blocks use: read from the built module, because names lie.

QuickGELU (x * sigmoid(1.702 x)) and GELU differ by up to 0.02 per unit; weights trained with one and run with the other
lose accuracy without any error message.
"""

from __future__ import annotations

from torch import nn

from mm.vision.config import Activation

_BY_CLASS: dict[str, Activation] = {
    "GELU": "gelu",  # timm's own class
    "QuickGELU": "quick_gelu",
    "QuickGELUActivation": "quick_gelu",
    "GELUActivation": "gelu",
    "GELUTanh": "gelu_tanh",
    "GELUTanhActivation": "gelu_tanh",
    "PytorchGELUTanh": "gelu_tanh",
}


def activation_of(blocks: nn.Module) -> Activation | None:
    """The one activation used inside `blocks`, or None if it is none of the three known ones.

    Raises:
        ValueError: the blocks mix activations.
    """
    found: set[Activation] = set()
    for module in blocks.modules():
        name = type(module).__name__
        if isinstance(module, nn.GELU):
            found.add("gelu_tanh" if module.approximate == "tanh" else "gelu")
        elif name in _BY_CLASS:
            found.add(_BY_CLASS[name])
    if len(found) > 1:
        raise ValueError(f"the tower's blocks mix activations: {', '.join(sorted(found))}")
    return found.pop() if found else None
