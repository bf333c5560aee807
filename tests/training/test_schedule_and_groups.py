"""Learning-rate schedule in closed form, optimiser groups by rule."""

import math

import pytest
import torch
from torch import nn

from mm.training.module import OptimizerConfig, TrainingModule
from mm.training.param_groups import GroupRule, assert_frozen_left_out, param_groups
from mm.training.schedule import build_schedule, schedule_factor


def test_closed_form_at_its_corners():
    def factor(step):
        return schedule_factor(step, total_steps=110, warmup=10 / 110, floor=0.1)

    assert [factor(s) for s in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])  # linear to the peak
    assert factor(10) == 1.0  # the cosine begins at the peak
    assert factor(60) == pytest.approx(0.55)  # half way: mean of peak and floor
    assert factor(35) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)
    assert factor(110) == factor(500) == pytest.approx(0.1)


def test_every_step_falls_after_the_warmup_and_rises_before():
    values = [schedule_factor(s, total_steps=50, warmup=0.2, floor=0.0) for s in range(50)]
    assert values[:10] == sorted(values[:10]) and values[10:] == sorted(values[10:], reverse=True)
    assert min(values) > 0


@pytest.mark.parametrize(("total", "warmup"), [(1, 0.5), (2, 0.99), (5, 0.0)])
def test_short_runs_never_have_a_rate_of_zero(total, warmup):
    assert all(schedule_factor(s, total_steps=total, warmup=warmup, floor=0.0) > 0 for s in range(total))


def test_constant_shape_stays_at_the_peak():
    assert schedule_factor(99, total_steps=100, warmup=0.1, floor=0.0, shape="constant") == 1.0


def test_scheduler_sets_each_groups_rate_and_its_state_holds_no_objects():
    a, b = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"params": [a], "lr": 1.0}, {"params": [b], "lr": 0.1}])
    schedule = build_schedule(optimizer, total_steps=10, warmup=0.2, floor=0.0)
    seen = []
    for _ in range(3):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    assert seen == [[0.5, 0.05], [1.0, 0.1], [1.0, 0.1]]
    assert schedule.state_dict()["lr_lambdas"] == [{}, {}]


class Parts(nn.Module):
    def __init__(self):
        super().__init__()
        self.tower = nn.Linear(4, 4).requires_grad_(False)
        self.projector = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
        self.norm2d = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 2)
        self.scale = nn.Parameter(torch.zeros(()))


def test_rules_scales_and_decay():
    model = Parts()
    groups = param_groups(
        model, [GroupRule(name="projector", pattern=r"^projector\.", lr_scale=0.1)], lr=1e-2, weight_decay=0.05
    )
    table = {group["name"]: group for group in groups}
    assert set(table) == {"projector", "projector (no decay)", "rest", "rest (no decay)"}
    assert [p is model.projector[0].weight for p in table["projector"]["params"]] == [True]
    assert table["projector"]["lr"] == pytest.approx(1e-3) and table["rest"]["lr"] == 1e-2
    assert table["projector"]["weight_decay"] == table["rest"]["weight_decay"] == 0.05
    exempt = table["rest (no decay)"]
    assert {id(p) for p in exempt["params"]} == {
        id(p) for p in (*model.norm2d.parameters(), model.head.bias, model.scale)
    }
    assert exempt["weight_decay"] == table["projector (no decay)"]["weight_decay"] == 0.0


def test_first_rule_wins_and_a_rule_can_set_its_own_decay():
    rules = [
        GroupRule(name="head", pattern="head", weight_decay=0.3),
        GroupRule(name="weights", pattern="weight", lr_scale=2.0),
    ]
    table = {group["name"]: group for group in param_groups(Parts(), rules, lr=1.0, weight_decay=0.0)}
    assert table["head"]["weight_decay"] == 0.3
    assert all(p.shape != (2, 4) for p in table["weights"]["params"])


def test_frozen_and_shared_parameters():
    model = Parts()
    model.head2 = nn.Linear(4, 2)
    model.head2.weight = model.head.weight
    groups = param_groups(model, lr=1.0, weight_decay=0.0)
    held = [id(p) for group in groups for p in group["params"]]
    assert id(model.tower.weight) not in held
    assert held.count(id(model.head.weight)) == 1
    assert_frozen_left_out(groups, model)
    groups[0]["params"].append(model.tower.weight)
    with pytest.raises(AssertionError, match="differ"):
        assert_frozen_left_out(groups, model)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([GroupRule(name="tower", pattern="^tower")], r"take no trainable parameter: tower \('\^tower'\)"),
        ([GroupRule(name="a", pattern="head"), GroupRule(name="a", pattern="norm")], "different names"),
    ],
)
def test_rules_that_would_be_ignored_are_errors(rules, message):
    with pytest.raises(ValueError, match=message):
        param_groups(Parts(), rules, lr=1.0, weight_decay=0.0)


def test_nothing_to_train():
    with pytest.raises(ValueError, match="no trainable parameter"):
        param_groups(nn.Linear(2, 2).requires_grad_(False), lr=1.0, weight_decay=0.0)


@pytest.mark.parametrize(
    "wrong",
    [{"lr": 0.0}, {"warmup": 1.0}, {"min_lr_ratio": 2.0}, {"clip_norm": 0.0}],
)
def test_wrong_optimizer_settings(wrong):
    with pytest.raises(ValueError, match=f"optimizer.*{next(iter(wrong))}"):
        OptimizerConfig(**wrong)


def test_wrong_rules():
    with pytest.raises(ValueError, match="no regular expression"):
        GroupRule(name="a", pattern="(")
    with pytest.raises(ValueError, match="above 0"):
        GroupRule(name="a", pattern="x", lr_scale=0.0)


def test_batch_size_of_the_usual_batches():
    module = TrainingModule(nn.Linear(1, 1))
    assert module.batch_size({"pixel_values": torch.zeros(9, 3), "input_ids": torch.zeros(4, 7)}) == 4
    assert module.batch_size((torch.zeros(5, 2), torch.zeros(5))) == 5
    assert module.batch_size({"meta": "text", "x": torch.zeros(3)}) == 3
