"""What the codes of a tokenizer know: the class of the thing on a patch, also under textures never seen in training.

Every code is given the class (colour and shape) that its training patches most often have. A code that carries meaning
names the class of new pictures as well, whatever their texture; a code of pixels does not.
Dims: B pictures, N patches, K codes.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor

from mm.codecs.semantic_vq.config import tiny
from mm.codecs.semantic_vq.data import OracleRows, OracleSceneConfig, loose_scene, oracle_features
from mm.codecs.semantic_vq.tokenizer import SemanticVQTokenizer
from mm.data import SceneConfig
from mm.data.dense import NOTHING, TARGETS
from mm.data.scenes import render
from mm.data.split import Split
from mm.data.words import SHAPES

SEEN = SceneConfig(max_things=2, textures=("plain", "striped", "dotted"), patterns=("plain", "striped", "grainy"))
"""What the tiny tokenizer is trained on."""
SHIFTED = SceneConfig(max_things=2, textures=("checked",), patterns=("checked",))
"""The same things under a texture and a ground pattern that training never shows."""
ORACLE = tiny().teacher
CHUNK = 128


def scenes(config: SceneConfig, seeds: range) -> dict[str, Tensor]:
    """`pictures` uint8, and per patch `classes` (B, N) int64 (64 pairs of colour and shape) and `thing` (B, N) bool."""
    rows = OracleRows(OracleSceneConfig(scenes=config, loose=True))(seeds)
    thing = rows["colour"] != TARGETS["colour"].index(NOTHING)
    return rows | {"thing": thing, "classes": rows["colour"] * len(SHAPES) + rows["shape"].clamp(max=len(SHAPES) - 1)}


def codes_of(tokenizer: SemanticVQTokenizer, pictures: Tensor) -> Tensor:
    """(B, N) int64 on the CPU."""
    device = tokenizer.target_mean.device
    return torch.cat([tokenizer.encode(part.to(device)).cpu() for part in pictures.split(CHUNK)]).flatten(1)


def class_of_code(codes: Tensor, classes: Tensor, size: int) -> Tensor:
    """The most frequent class of every code, (K); codes that do not occur get class 0."""
    table = torch.zeros(size, int(classes.max()) + 1)
    table.index_put_((codes, classes), torch.ones(len(codes)), accumulate=True)
    return table.argmax(1)


def evaluate(tokenizer: SemanticVQTokenizer, *, seed: int, count: int = 512) -> dict[str, float]:
    """Scores on patches that a thing covers.

    Args:
        tokenizer: With weights.
        seed: Which held-out pictures.
        count: Pictures per score; twice as many training pictures say what codes mean.

    Returns:
        class_accuracy, class_accuracy_shifted: colour and shape read off the code alone, on new pictures and under the
            texture shift; shape_accuracy_shifted, colour_accuracy_shifted: one of the two alone (chance 1/8);
            mutual_information_shifted: normalised, between code and class; same_code: share of codes that stay when
            things change their texture; thing_perplexity: of the codes on things, as a share of the codebook; usage:
            share of codes in use; cosine: of rebuilt features to the oracle's, centred, under the shift (left out for
            other teachers).
    """
    known = scenes(SEEN, Split("train").seeds[: 2 * count])
    meaning = class_of_code(
        codes_of(tokenizer, known["pictures"])[known["thing"]],
        known["classes"][known["thing"]],
        tokenizer.config.quantizer.size,
    )
    seeds = Split("test").seeds[seed * count : (seed + 1) * count]
    known_style, rows = scenes(SEEN, seeds), scenes(SHIFTED, seeds)
    codes, thing = codes_of(tokenizer, rows["pictures"]), rows["thing"]
    usage_on_things = tokenizer.usage_of(codes[thing]).perplexity / tokenizer.config.quantizer.size
    found = {
        "class_accuracy": _accuracies(meaning[codes_of(tokenizer, known_style["pictures"])], known_style)["class"],
        **{f"{name}_accuracy_shifted": share for name, share in _accuracies(meaning[codes], rows).items()},
        "mutual_information_shifted": float(
            normalized_mutual_info_score(rows["classes"][thing].numpy(), codes[thing].numpy())
        ),
        "same_code": same_code(tokenizer, seeds),
        "thing_perplexity": usage_on_things,
        "usage": tokenizer.usage_of(codes).used,
    }
    if tokenizer.config.teacher == ORACLE:
        found["cosine"] = _cosine(tokenizer, codes, rows)
    return found


def _accuracies(said: Tensor, rows: dict[str, Tensor]) -> dict[str, float]:
    """Share of patches with a thing whose class, shape and colour were said; `said` (B, N) int64."""
    said, right = said[rows["thing"]], rows["classes"][rows["thing"]]
    return {
        "class": (said == right).float().mean().item(),
        "shape": (said % len(SHAPES) == right % len(SHAPES)).float().mean().item(),
        "colour": (said // len(SHAPES) == right // len(SHAPES)).float().mean().item(),
    }


def same_code(tokenizer: SemanticVQTokenizer, seeds: range) -> float:
    """Share of the codes on things that stay when plain things get the texture that training never shows."""
    plain = replace(SEEN, textures=("plain",), patterns=("plain",))
    drawn = [loose_scene(seed, plain) for seed in seeds]
    changed = [
        replace(scene, things=tuple(replace(thing, texture=SHIFTED.textures[0]) for thing in scene.things))
        for scene in drawn
    ]
    size = tokenizer.config.image_size
    pictures = [
        torch.stack([torch.from_numpy(render(scene, size)).permute(2, 0, 1) for scene in part])
        for part in (drawn, changed)
    ]
    thing = scenes(plain, seeds)["thing"]
    before, after = (codes_of(tokenizer, part) for part in pictures)
    return (before == after)[thing].float().mean().item()


@torch.no_grad()
def _cosine(tokenizer: SemanticVQTokenizer, codes: Tensor, rows: dict[str, Tensor]) -> float:
    targets = oracle_features(rows["colour"], rows["shape"], tokenizer.config.target_width)
    side, device = tokenizer.config.side, tokenizer.target_mean.device
    features = [tokenizer.decode_features(part.view(-1, side, side).to(device)).cpu() for part in codes.split(CHUNK)]
    mean = tokenizer.target_mean.cpu()
    found = F.cosine_similarity(torch.cat(features) - mean, targets - mean, dim=-1)
    return found[rows["thing"]].mean().item()
