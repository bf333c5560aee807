"""How the shipped tiny codec is made: five stages in a row, each under the Lightning trainer.

    python -m mm.codecs.semanticodec.recipe --out runs/semanticodec            # all stages
    python -m mm.codecs.semanticodec.recipe --out runs/semanticodec --stages audiomae vae vocoder
    python -m mm.codecs.semanticodec.recipe --out runs/mine --sounds FOLDER    # on own recordings

Feature extractor, autoencoder and vocoder don't need each other and may run at the same time; `codebooks` joins them
and clusters the features, `joint` trains the rest. Every stage leaves a whole codec in its folder.
Dims: P sounds of the pool, S samples.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch import Callback
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from mm.checkpoint import load_state
from mm.codecs.semanticodec.audiomae_module import AudioMaeModule
from mm.codecs.semanticodec.codebook_module import CodebookModule
from mm.codecs.semanticodec.codec import SemantiCodec
from mm.codecs.semanticodec.joint_module import JointModule
from mm.codecs.semanticodec.mel import LogMel
from mm.codecs.semanticodec.sound_data import SoundDataConfig, sound_rows
from mm.codecs.semanticodec.sound_folder import SoundFolder, SoundFolderConfig
from mm.codecs.semanticodec.vae_module import VaeModule
from mm.codecs.semanticodec.vocoder_module import VocoderModule
from mm.data.split import Split
from mm.training.ema import EMA
from mm.training.module import OptimizerConfig
from mm.training.schedule import build_schedule


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of the recipe."""

    module: Any
    """LightningModule class."""
    steps: int
    """Optimiser steps."""
    batch: int
    """Sounds per step."""
    lr: float = 1e-3
    """Peak learning rate; cosine to zero."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Of AdamW."""
    ema: float | None = None
    """Decay of the average of the weights; none keeps the last weights."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the module."""


STAGES: dict[str, Stage] = {
    "audiomae": Stage(module=AudioMaeModule, steps=1000, batch=48, lr=2e-3, options={"hidden_share": 0.7}),
    "vae": Stage(module=VaeModule, steps=1000, batch=12, lr=4e-3, ema=0.98, options={"kl_weight": 1e-3}),
    "vocoder": Stage(
        module=VocoderModule,
        steps=1500,
        batch=16,
        lr=2e-3,
        betas=(0.8, 0.99),
        ema=0.98,
        options={"stft_weight": 20.0, "frames": 32, "discriminator_width": 0},
    ),
    "joint": Stage(
        module=JointModule,
        steps=1300,
        batch=24,
        lr=2e-3,
        ema=0.985,
        options={"semantic_only_share": 0.1, "unquantized_share": 0.3},
    ),
}
FIRST = ("audiomae", "vae", "vocoder")


class Pool(IterableDataset):
    """Endless random batches of a fixed pool of sounds, made where the pool lies (on the GPU)."""

    def __init__(self, sounds: dict[str, Tensor], batch: int, seed: int) -> None:
        self.sounds, self.batch, self.seed = sounds, batch, seed

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(self.seed)
        first = next(iter(self.sounds.values()))
        while True:
            rows = torch.randint(len(first), (self.batch,), generator=generator).to(first.device)
            yield {name: value[rows] for name, value in self.sounds.items()}


class FitInto(Callback):
    """Shortens a stage so that it takes about so many seconds on this machine.

    Args:
        seconds: For the whole stage.
        after: Steps to measure the speed on, the first half of which is warm-up.
    """

    def __init__(self, seconds: float, after: int = 60) -> None:
        self.seconds, self.after, self.begun, self.measured = seconds, after, 0.0, 0.0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Start the clock."""
        self.begun = time.perf_counter()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Measure, then set the number of steps and the schedule anew."""
        if trainer.global_step == self.after // 2:
            self.measured = time.perf_counter()
        if trainer.global_step != self.after:
            return
        now = time.perf_counter()
        per_step = (now - self.measured) / (self.after - self.after // 2)
        more = max(int((self.seconds - (now - self.begun)) / per_step), 0)
        steps = min(trainer.max_steps, self.after + more)
        trainer.fit_loop.epoch_loop.max_steps = steps
        for entry in trainer.lr_scheduler_configs:
            config, schedule = pl_module.optimizer, entry.scheduler
            entry.scheduler = build_schedule(
                schedule.optimizer, total_steps=steps, warmup=config.warmup, floor=config.min_lr_ratio, shape="cosine"
            )
            entry.scheduler.last_epoch = schedule.last_epoch
        print(f"{type(pl_module).__name__}: {1000 * per_step:.1f} ms per step, {steps} steps", file=sys.stderr)


class Progress(Callback):
    """A line with the numbers of a stage now and then."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Print every tenth of the run."""
        if trainer.global_step % max(trainer.max_steps // 10, 1) == 0:
            logs = {key: round(float(value), 4) for key, value in outputs["logs"].items()}
            print(f"{type(pl_module).__name__} {trainer.global_step}: {logs}", file=sys.stderr, flush=True)


def make_pool(path: Path, count: int, samples: int, workers: int) -> None:
    """Write `count` training sounds to a file."""
    seeds, block = Split("train").seeds, 64
    work = partial(sound_rows, SoundDataConfig(samples=samples))
    with ProcessPoolExecutor(workers) as pool:
        parts = list(pool.map(work, [seeds[i : i + block] for i in range(0, count, block)]))
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({name: torch.cat([part[name] for part in parts]) for name in parts[0]}, path)


def take_pool(path: Path, folder: str, count: int, samples: int) -> None:
    """Write `count` segments of own recordings to a file."""
    data = SoundFolder(SoundFolderConfig(train=folder, samples=samples))
    data.setup()
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(data.rows(Split("train").seeds[:count]), path)


def run_stage(
    name: str,
    out: Path,
    sounds: dict[str, Tensor],
    *,
    device: str,
    scale: float,
    seed: int,
    batch: int | None = None,
    seconds: float | None = None,
    go_on: bool = False,
) -> Path:
    """Train one stage and write its codec to `out/name`.

    Args:
        name: audiomae, vae, vocoder, codebooks or joint.
        out: Folder of the recipe.
        sounds: The pool.
        device: cpu or cuda.
        scale: Factor on the number of steps.
        seed: Of weights, batches and noise.
        batch: Sounds per step; none takes the recipe's.
        seconds: Shorten the stage to about this time.
        go_on: Start from what the stage left in its folder earlier, with a new schedule.
    """
    lightning.seed_everything(seed, verbose=False)
    start = time.perf_counter()
    if name == "codebooks":
        module: Any = _codebooks(out, sounds, device, seed)
    else:
        stage = STAGES[name]
        optimizer = OptimizerConfig(lr=stage.lr, betas=stage.betas, weight_decay=0.01, warmup=0.05)
        begin = {"codec": str(out / "codebooks")} if name == "joint" else {}
        if go_on and (out / name).is_dir():
            begin = {"codec": str(out / name)}
        module = stage.module(**begin, seed=seed, optimizer=optimizer, **stage.options)
        steps = max(round(stage.steps * scale), 1)
        callbacks = [Progress(), *([EMA(stage.ema)] if stage.ema else []), *([FitInto(seconds)] if seconds else [])]
        trainer = _trainer(device, max_steps=steps, callbacks=callbacks)
        pool, batch = (cached(module.model, sounds) if name == "joint" else sounds), batch or stage.batch
        if name == "joint" and device == "cuda":
            record(module, batch)
        trainer.fit(module, DataLoader(Pool(pool, batch, seed), batch_size=None))
    module.model.cpu().eval().save_pretrained(out / name)
    print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    return out / name


def record(module: JointModule, batch: int) -> None:
    """Record both passes of the diffusion network for batches of this size as CUDA graphs.

    It is so small that launching its kernels one by one takes longer than running them.
    """
    decoder = module.cuda().train().model.decoder
    features = torch.zeros(batch, decoder.config.window_tokens, decoder.config.feature_width, device="cuda")
    context = [
        tuple(entry.detach().requires_grad_() for entry in pair)
        for pair in decoder.unet.read_context(decoder.condition(features))
    ]
    latents = torch.zeros(batch, *decoder.config.latent_shape, device="cuda")
    timesteps = torch.zeros(batch, dtype=torch.int64, device="cuda")
    # unused: what projects keys and values belongs to the network, but runs outside
    torch.cuda.make_graphed_callables(decoder.unet, (latents, timesteps, context), allow_unused_input=True)


@torch.no_grad()
def cached(codec: SemantiCodec, sounds: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the frozen parts make of the pool, computed once instead of in every step of the joint stage."""
    mel, parts = LogMel(codec.config.decoder.vae.mel_bins).to(sounds["waves"].device), []
    codec.to(sounds["waves"].device).eval()
    for waves in sounds["waves"].split(64):
        frames = codec.bank(waves)
        posterior = codec.decoder.vae.encode(mel(waves[:, : codec.config.decoder.window_samples])[:, None])
        moments = torch.cat([posterior.mean, posterior.log_variance], dim=1)
        parts.append((codec.encoder.features(frames), codec.encoder.keep(frames), moments))
    codec.train()
    columns = zip(*parts, strict=True)
    return {name: torch.cat(column) for name, column in zip(("features", "keep", "moments"), columns, strict=True)}


def _codebooks(out: Path, sounds: dict[str, Tensor], device: str, seed: int) -> CodebookModule:
    """Join the three parts and cluster the features of the pool."""
    module = CodebookModule(seed=seed)
    parts = {"audiomae": "encoder.audiomae", "vae": "decoder.vae", "vocoder": "decoder.vocoder"}
    for name, part in parts.items():
        trained = SemantiCodec.from_pretrained(out / name)
        load_state(module.model.get_submodule(part), trained.get_submodule(part).state_dict(), source=str(out / name))
    count = min(len(sounds["waves"]), 4096)
    batches: Any = [
        {name: value[i : min(i + 256, count)] for name, value in sounds.items()} for i in range(0, count, 256)
    ]
    trainer = _trainer(device, max_epochs=1)
    trainer.fit(module, DataLoader(batches, batch_size=None))
    return module


def _trainer(device: str, **settings: Any) -> lightning.Trainer:
    return lightning.Trainer(
        accelerator="gpu" if device == "cuda" else device,
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        **settings,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="folder of all stages")
    parser.add_argument("--stages", nargs="*", default=[*FIRST, "codebooks", "joint"], help="default: all, in order")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the number of steps (default: 1)")
    parser.add_argument("--sounds", metavar="FOLDER", help="own recordings instead of made sounds")
    parser.add_argument("--pool", type=int, default=4096, help="sounds in the pool (default: 4096)")
    parser.add_argument("--batch", type=int, default=None, help="sounds per step (default: per stage)")
    parser.add_argument("--seconds", type=float, default=None, help="shorten each stage to about this time")
    parser.add_argument("--go-on", action="store_true", help="continue stages from the weights they left")
    parser.add_argument("--workers", type=int, default=2, help="processes that make the pool (default: 2)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    torch.set_float32_matmul_precision("high")
    path = arguments.out / "pool.pt"
    if not path.is_file() and arguments.sounds:
        take_pool(path, arguments.sounds, arguments.pool, 20_480)
    elif not path.is_file():
        make_pool(path, arguments.pool, 20_480, arguments.workers)
    stored = torch.load(path, weights_only=True)
    sounds = {name: value[: arguments.pool].to(arguments.device) for name, value in stored.items()}
    for name in arguments.stages:
        run_stage(
            name,
            arguments.out,
            sounds,
            device=arguments.device,
            scale=arguments.scale,
            seed=arguments.seed,
            batch=arguments.batch,
            seconds=arguments.seconds,
            go_on=arguments.go_on,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
