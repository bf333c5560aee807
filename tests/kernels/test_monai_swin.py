"""The swapped MONAI encoder: same keys, same numbers forward and backward, and undone without a trace."""

import pytest
import torch

from mm.kernels.monai_swin import replace_window_attention

monai_swin = pytest.importorskip("monai.networks.nets.swin_unetr")


def tiny(dims=3, **options):
    torch.manual_seed(0)
    settings = {"in_chans": 1, "embed_dim": 12, "window_size": (3,) * dims, "patch_size": (2,) * dims}
    settings |= {"depths": (2, 1, 1, 1), "num_heads": (1, 2, 2, 4), "spatial_dims": dims} | options
    model = monai_swin.SwinTransformer(**settings)
    for name, weight in model.named_parameters():
        if "bias" in name:
            torch.nn.init.normal_(weight)  # bias tables and projection biases that matter
    return model


def outputs_and_gradients(model, x):
    model.zero_grad()
    x = x.clone().requires_grad_()
    outputs = model(x)
    sum((y * y.detach().cos()).sum() for y in outputs).backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    return [y.detach() for y in outputs], {"input": x.grad, **gradients}


@pytest.mark.parametrize(
    ("dims", "size", "options"),
    [
        (3, (16, 18, 26), {}),  # padded and shifted windows; the last stages are smaller than a window
        (3, (16, 16, 32), {"qkv_bias": False, "use_checkpoint": True}),
        (2, (20, 36), {"use_v2": True}),
    ],
)
def test_same_numbers_as_monai(dims, size, options, close):
    model, x = tiny(dims, **options).double(), torch.randn(1, 1, *size).double()  # float64: nothing hides in rounding
    keys = list(model.state_dict())
    outputs, gradients = outputs_and_gradients(model, x)
    with replace_window_attention(model) as replaced:
        assert replaced.blocks == 5 and list(model.state_dict()) == keys
        ours, our_gradients = outputs_and_gradients(model, x)
    for made, true in zip(ours, outputs, strict=True):
        close(made, true)
    assert gradients.keys() == our_gradients.keys()
    for name, true in gradients.items():
        close(our_gradients[name], true)


def test_undo_leaves_nothing_behind():
    model = tiny()
    before = [type(module) for module in model.modules()], [set(vars(module)) for module in model.modules()]
    with pytest.raises(RuntimeError, match="inside"):
        with replace_window_attention(model):
            raise RuntimeError("inside")
    assert before == ([type(module) for module in model.modules()], [set(vars(module)) for module in model.modules()])


def test_the_swapped_model_runs_our_operator_and_builds_no_mask(monkeypatch):
    model, x = tiny(), torch.randn(1, 1, 16, 16, 16)

    def fail(*_):
        raise AssertionError("the [windows, n, n] mask was built")

    monkeypatch.setattr(monai_swin, "compute_mask", fail)
    with replace_window_attention(model), torch.profiler.profile() as record:
        model(x)
    assert sum(event.count for event in record.key_averages() if event.key == "mm::window_attention") == 5


def test_exact_bias_differs_only_where_windows_are_clipped():
    model, x = tiny(window_size=(4, 4, 4)), torch.randn(1, 1, 12, 16, 16)
    runs = []
    for legacy in (True, False):
        with replace_window_attention(model, legacy_index=legacy), torch.no_grad():
            runs.append(model(x))
    assert torch.equal(runs[0][0], runs[1][0])
    assert not torch.allclose(runs[0][-1], runs[1][-1])


def test_errors_say_what_is_wrong():
    with pytest.raises(ValueError, match="Linear holds no MONAI SwinTransformerBlock"):
        replace_window_attention(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"layers1\.0\.blocks\.0: attention dropout 0\.1"):
        replace_window_attention(tiny(attn_drop_rate=0.1))
