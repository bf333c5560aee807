"""Optimiser groups by rule: a regular expression on the parameter name gives a learning-rate factor and weight decay.

Norms and biases never decay: they hold scales and offsets, which decay would pull to zero. Frozen parameters never
reach the optimiser.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True, kw_only=True)
class GroupRule:
    """One named group of parameters; the first rule whose pattern is found in a name takes the parameter."""

    name: str
    """Name of the group, for logs."""
    pattern: str
    """Regular expression, searched in the full parameter name ("model.projector.fc1.weight")."""
    lr_scale: float = 1.0
    """Factor on the learning rate of the run."""
    weight_decay: float | None = None
    """Decay of this group's matrices; none given takes the decay of the run."""

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"rule {self.name!r}: {self.pattern!r} is no regular expression: {error}") from error
        if self.lr_scale <= 0:
            raise ValueError(f"rule {self.name!r}: lr_scale must be above 0, got {self.lr_scale}; or freeze them")
        if self.name == DEFAULT_GROUP:
            raise ValueError(f"rule {self.name!r}: this name is taken by the parameters that no rule matches")


DEFAULT_GROUP = "rest"


def param_groups(
    model: nn.Module, rules: Sequence[GroupRule] = (), *, lr: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Sort the trainable parameters of `model` into optimiser groups.

    Args:
        model: Parameters with `requires_grad=False` are left out.
        rules: Searched in order; parameters that none matches form the group "rest".
        lr: Learning rate of the run.
        weight_decay: Decay of matrices where the rule does not say otherwise.

    Returns:
        Dicts for a torch optimiser with `name`, `params`, `lr`, `lr_scale`, `weight_decay`. A group that holds both
        kinds appears twice, as "name" and "name (no decay)".

    Raises:
        ValueError: nothing is trainable, two rules share a name, or a rule takes no trainable parameter.
    """
    names = [rule.name for rule in rules]
    if len(set(names)) < len(names):
        raise ValueError(f"optimiser rules must have different names, got {', '.join(names)}")
    exempt = set(_without_decay(model))
    table = {rule.name: rule for rule in rules}
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():  # shared parameters come once
        if parameter.requires_grad:
            groups.setdefault((_group_of(name, rules), name in exempt), []).append(parameter)
    if not groups:
        raise ValueError(f"{type(model).__name__} has no trainable parameter; unfreeze a part of it")
    idle = [rule for rule in rules if not any(rule.name == group for group, _ in groups)]
    if idle:
        listed = ", ".join(f"{rule.name} ({rule.pattern!r})" for rule in idle)
        raise ValueError(
            f"optimiser rules that take no trainable parameter: {listed}; remove them, or look for frozen parts or an "
            "earlier rule that takes the same names"
        )
    return [_as_dict(key, parameters, table, lr, weight_decay) for key, parameters in groups.items()]


def _group_of(name: str, rules: Sequence[GroupRule]) -> str:
    return next((rule.name for rule in rules if re.search(rule.pattern, name)), DEFAULT_GROUP)


def _as_dict(
    key: tuple[str, bool], parameters: list[nn.Parameter], rules: dict[str, GroupRule], lr: float, weight_decay: float
) -> dict[str, Any]:
    name, no_decay = key
    rule = rules.get(name)
    scale = rule.lr_scale if rule else 1.0
    decay = rule.weight_decay if rule and rule.weight_decay is not None else weight_decay
    label = f"{name} (no decay)" if no_decay else name
    decay = 0.0 if no_decay else decay
    return {"name": label, "params": parameters, "lr": lr * scale, "lr_scale": scale, "weight_decay": decay}


def _without_decay(model: nn.Module) -> Iterator[str]:
    """Names of norm and bias parameters: vectors and scalars, biases of any shape, everything a norm module owns."""
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(path, recurse=False):
            if parameter.ndim <= 1 or name.rsplit(".", 1)[-1] == "bias" or "Norm" in type(module).__name__:
                yield name


def assert_frozen_left_out(groups: Sequence[dict[str, Any]], model: nn.Module) -> None:
    """What cannot happen: a frozen tensor in the optimiser, or a trainable one missing from it or there twice."""
    held = [id(parameter) for group in groups for parameter in group["params"]]
    trainable = [id(parameter) for parameter in model.parameters() if parameter.requires_grad]
    assert len(held) == len(set(held)) and set(held) == set(trainable), "groups differ from trainable parameters"
