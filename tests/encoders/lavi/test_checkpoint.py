"""Adapter files: key layout, strictness, whole or not at all; parameter groups."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from mm.encoders.lavi import attach, attach_pretrained, load_adapter, parameter_groups, save_adapter, set_trainable


def test_adapter_files_hold_the_visual_path_under_fixed_keys(toolbox, tmp_path):
    lavi = toolbox.lavi(layers=(1,))
    keys = set(load_file(save_adapter(lavi, tmp_path / "a") / "model.safetensors"))
    projector = {"norm.weight", "norm.bias", "fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"}
    projector |= {"tile_emb", "frame_emb", "image_emb"}
    sites = {f"{s}.{n}.weight" for s in ("attn", "ffn") for n in ("q_proj", "q_norm", "out_proj")}
    memory = {f"kv.{n}.weight" for n in ("k_proj", "v_proj", "k_norm")}
    assert keys == {f"visual_proj.{k}" for k in projector} | {f"cond.layers.1.{k}" for k in sites | memory}
    out = lavi.cond.block(1).site("attn").out_proj.weight
    assert out.shape == (64, 16), "rows 0..31 are dgamma, 32..63 dbeta"


def test_whole_models_keep_the_original_keys_of_the_language_model(toolbox, tmp_path):
    lavi = toolbox.lavi("gemma")  # head and embedding are tied
    save_adapter(lavi, tmp_path / "whole", language_model=True)
    stored = load_file(tmp_path / "whole" / "model.safetensors")
    language = {k.removeprefix("language_model.") for k in stored if k.startswith("language_model.")}
    assert language == set(toolbox.language_model("gemma").state_dict())

    other = attach(toolbox.language_model("gemma", seed=5), toolbox.config())
    load_adapter(other, tmp_path / "whole")
    ids = toolbox.ids()
    assert torch.equal(other(ids, visual=toolbox.encode(other)).logits, lavi(ids, visual=toolbox.encode(lavi)).logits)


def test_attach_pretrained_needs_no_config(toolbox, tmp_path):
    lavi = toolbox.lavi(sites=("ffn",), relative=True)
    save_adapter(lavi, tmp_path / "a")
    again = attach_pretrained(toolbox.language_model(), tmp_path / "a")
    assert again.config == lavi.config
    ids = toolbox.ids()
    assert torch.equal(again(ids, visual=toolbox.encode(again)).logits, lavi(ids, visual=toolbox.encode(lavi)).logits)


def test_adapters_that_do_not_fit_are_named(toolbox, tmp_path):
    lavi = toolbox.lavi()
    path = save_adapter(lavi, tmp_path / "a")
    with pytest.raises(ValueError, match="family=llama, this one has family=qwen2"):
        attach_pretrained(toolbox.language_model("qwen2"), path)
    with pytest.raises(ValueError, match="made with conditioner='attention', this model has conditioner='film'"):
        load_adapter(toolbox.lavi(conditioner="film"), path)

    tensors = load_file(path / "model.safetensors")
    tensors["cond.layers.0.attn.q_proj.weigth"] = tensors.pop("cond.layers.0.attn.q_proj.weight")
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"(?s)missing \(1\): cond.layers.0.attn.q_proj.weight.*unexpected \(1\).*weigth"
    ):
        load_adapter(lavi, path)

    data = json.loads((path / "config.json").read_text())
    data["config"]["num_head"] = 3
    (path / "config.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match="no key 'num_head'; did you mean 'num_heads'"):
        load_adapter(lavi, path)
    (path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="not a LaVi adapter folder"):
        load_adapter(lavi, path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_adapter(lavi, tmp_path / "nowhere")


def test_a_failed_save_leaves_the_old_adapter(toolbox, tmp_path, monkeypatch):
    lavi = toolbox.lavi()
    path = save_adapter(lavi, tmp_path / "a")
    before = (path / "model.safetensors").read_bytes()

    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mm.encoders.lavi.checkpoint.save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_adapter(lavi, path)
    assert (path / "model.safetensors").read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


# --- what is trained --------------------------------------------------------------------------------------------


def test_stage_one_trains_the_visual_path_only(toolbox):
    lavi = toolbox.lavi()
    set_trainable(lavi)
    names = {name for name, p in lavi.named_parameters() if p.requires_grad}
    assert names == {name for name, _ in lavi.named_parameters() if not name.startswith("language_model.")}
    assert not lavi.train().language_model.training, "a frozen language model has no dropout"
    lavi.gradient_checkpointing_enable()
    assert lavi.language_model.training, "checkpointing acts in training mode only"


def test_language_model_is_trained_when_asked_for(toolbox):
    lavi = toolbox.lavi()
    set_trainable(lavi, "full")
    assert all(p.requires_grad for p in lavi.parameters()) and lavi.train().language_model.training
    with pytest.raises(ValueError, match="no LoRA weights"):
        set_trainable(lavi, "lora")
    with pytest.raises(ValueError, match="must be 'frozen', 'lora' or 'full'"):
        set_trainable(lavi, "all")


def test_lora_stage_trains_lora_and_the_visual_path(toolbox):
    peft = pytest.importorskip("peft")
    lavi = toolbox.lavi()
    lora = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    lavi.language_model = peft.get_peft_model(lavi.language_model, lora)
    set_trainable(lavi, "lora")
    language = [n for n, p in lavi.named_parameters() if p.requires_grad and n.startswith("language_model.")]
    assert language and all("lora_" in name for name in language)
    assert all(p.requires_grad for p in lavi.cond.parameters())


def test_parameter_groups_hold_every_trainable_parameter_once(toolbox):
    lavi = toolbox.lavi()
    set_trainable(lavi, "full")
    groups = parameter_groups(lavi, lr=1e-4, out_lr=1e-3, language_lr=2e-5, weight_decay=0.1)
    ids = [id(p) for group in groups for p in group["params"]]
    assert len(ids) == len(set(ids)) and set(ids) == {id(p) for p in lavi.parameters()}
    by_name = {group["name"]: group for group in groups}
    assert {name: g["lr"] for name, g in by_name.items() if "no decay" not in name} == {
        "language": 2e-5,
        "visual": 1e-4,
        "output": 1e-3,
    }
    assert len(by_name["output"]["params"]) == 4
    assert any(p is lavi.visual_proj.tile_emb for p in by_name["visual (no decay)"]["params"])
    assert by_name["visual (no decay)"]["weight_decay"] == 0.0 and by_name["visual"]["weight_decay"] == 0.1
    set_trainable(lavi)
    assert not any(group["name"].startswith("language") for group in parameter_groups(lavi))
