"""One run: parse its configuration, build model, data and trainer, execute, and leave a record beside the result."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, set_parsing_settings
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter, Callback
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from mm.catalog import DATA, MODULES
from mm.checkpoint import Pretrained, write_aside, write_json
from mm.command import UsageError, progress_wanted
from mm.training.checkpoints import LAST, LastCheckpoint, RandomState, SafeCheckpointIO
from mm.training.config_errors import faulty_file, sentence
from mm.training.curve import CurveLogger
from mm.training.ema import EMA
from mm.training.module import TrainingModule
from mm.training.monitor import Monitor
from mm.training.predictions import JsonLines
from mm.training.record import CONFIG_FILE, write_record

logger = logging.getLogger(__name__)
ALLOWED = ("mm", "lightning", "torch")
SAME_RUN = ("model", "data", "seed_everything")
"""Sections that must not change between the two halves of a resumed run."""


class Run(LightningCLI):
    """A run of one verb.

    Args:
        verb: "fit", "validate", "test" or "predict".
        configs: (file, content) of the configurations; later ones win.
        words: Further options of the command line.
        allow: Packages whose classes a configuration may name, beside this toolkit, Lightning and torch.
        out: Folder of the run unless a configuration or an option says otherwise.
        command: The whole command line, for the record.

    Raises:
        ValueError: a configuration is wrong; UsageError: an option is.
    """

    def __init__(
        self,
        verb: str,
        configs: Sequence[tuple[str, dict[str, Any]]],
        words: Sequence[str],
        *,
        allow: Sequence[str] = (),
        out: str = "runs/unnamed",
        command: Sequence[str] = (),
    ) -> None:
        self.verb = verb
        self.command = list(command)
        self._default_out = out
        self._texts = [(name, yaml.safe_dump(content, sort_keys=False)) for name, content in configs]
        restrict_imports(allow)
        super().__init__(
            LightningModule,  # not TrainingModule: the parser would prefer its defaults to those of the subclass
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=None,
            seed_everything_default=0,
            trainer_defaults={"log_every_n_steps": 10, "enable_model_summary": False},
            parser_kwargs={"exit_on_error": False, "allow_abbrev": False},
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            run=False,
            args=[*(f"--config={text}" for _, text in self._texts), *words],
        )

    # --- configuration -----------------------------------------------------------------------------------------------

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Settings of the run itself."""
        parser.add_argument("--out", type=str, default=self._default_out, help="Folder of the run.")
        parser.add_argument("--resume", type=str, default="auto", help="auto, never, or a checkpoint to start from.")
        parser.add_argument("--ckpt", type=str, default="auto", help="auto, none, or a checkpoint to evaluate.")
        parser.add_argument("--save_every", type=int, default=100, help="Optimiser steps between checkpoints.")
        parser.add_argument("--ema", type=float | None, default=None, help="Decay of the average of the weights.")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, and say which file or option is wrong."""
        try:
            self.config = parser.parse_args(args)
        except ArgumentError as error:
            known = [*parser.get_defaults().keys(), *(f"trainer.{key}" for key in _trainer_settings(parser))]
            text = sentence(str(error), known)
            file = faulty_file(parser.parse_args, self._texts, str(error))
            if file is None:
                raise UsageError(f"{text} (mm {self.verb} --help)") from error
            raise ValueError(f"{file}: {text}") from error
        if self.config.trainer.gradient_clip_val is not None:
            raise ValueError("trainer.gradient_clip_val would be ignored; set model.init_args.optimizer.clip_norm")
        if self.config.trainer.default_root_dir is not None:
            raise ValueError("trainer.default_root_dir would be ignored; set out")

    def instantiate_classes(self) -> None:
        """Build data, model and trainer; a value that a class refuses is one sentence too."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            source = f"{self._texts[0][0]}: " if len(self._texts) == 1 else ""
            raise ValueError(source + sentence(str(error))) from error

    def after_instantiate_classes(self) -> None:
        """Only modules that log, resume and schedule as this toolkit promises; `predict` needs nothing of that."""
        if self.verb != "predict" and not isinstance(self.model, TrainingModule):
            raise ValueError(f"model: {type(self.model).__name__} must extend mm.training.TrainingModule")

    @property
    def out(self) -> Path:
        """Folder of the run."""
        return Path(self.config.out)

    def resolved(self) -> str:
        """Every setting, defaults included, as YAML that the same command reads."""
        return self.parser.dump(self.config, skip_none=False)

    # --- trainer -----------------------------------------------------------------------------------------------------

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The configured trainer with this toolkit's callbacks, loggers and checkpoint writer."""
        settings = dict(self.config_init.trainer) | kwargs
        settings["default_root_dir"] = str(self.out)
        settings["callbacks"] = [*(settings.get("callbacks") or []), *self._callbacks(settings)]
        settings["plugins"] = [*_as_list(settings.get("plugins")), SafeCheckpointIO()]
        settings["logger"] = self._loggers(settings.get("logger")) if self.verb == "fit" else False
        if settings.get("enable_progress_bar") is None:
            settings["enable_progress_bar"] = progress_wanted()
        try:
            return Trainer(**settings)
        except MisconfigurationException as error:
            raise ValueError(f"trainer: {error}") from error

    def _callbacks(self, settings: dict[str, Any]) -> list[Callback]:
        given = settings.get("callbacks") or []
        if self.verb == "predict":
            return [] if any(isinstance(c, BasePredictionWriter) for c in given) else [JsonLines(self.out / "predict")]
        if self.verb != "fit":
            return []
        callbacks: list[Callback] = [Monitor(), RandomState()]
        if self.config.ema is not None:
            callbacks.append(EMA(self.config.ema))
        if settings.get("enable_checkpointing") is not False:
            callbacks.append(LastCheckpoint(self.out / "checkpoints", self.config.save_every))
        return callbacks

    def _loggers(self, configured: Any) -> list[Any]:
        """The CSV curve always; TensorBoard if it is installed, unless the configuration names loggers or none."""
        curve = CurveLogger(self.out)
        if configured is False:
            return [curve]
        if configured is not None and configured is not True:
            return [curve, *_as_list(configured)]
        if find_spec("tensorboard") is None:
            logger.info("TensorBoard is not installed, the curve goes to metrics.csv alone (pip install 'mm[train]')")
            return [curve]
        from lightning.pytorch.loggers import TensorBoardLogger

        return [curve, TensorBoardLogger(self.out, name="tensorboard", version="")]

    # --- execution ---------------------------------------------------------------------------------------------------

    def start(self) -> dict[str, Any]:
        """Execute the verb.

        Returns:
            Plain data: folder, checkpoint, steps and metrics.
        """
        try:
            return self._fit() if self.verb == "fit" else self._evaluate()
        except MisconfigurationException as error:
            raise ValueError(f"{type(self.model).__name__}: {error}") from error

    def _fit(self) -> dict[str, Any]:
        checkpoint = self._checkpoint_to_resume()
        self._record(self.out)
        if checkpoint is not None:
            logger.info("resuming from %s", checkpoint)
        self.trainer.fit(self.model, self.datamodule, ckpt_path=checkpoint, weights_only=True)
        result: dict[str, Any] = {"out": str(self.out), "steps": self.trainer.global_step}
        inner = getattr(self.model, "model", None)
        if isinstance(inner, Pretrained) and self.trainer.is_global_zero:
            inner.save_pretrained(self.out / "model")
            result["model"] = str(self.out / "model")
            logger.info("weights: %s", result["model"])
        return result | {"metrics": self._metrics(self.trainer.callback_metrics)}

    def _evaluate(self) -> dict[str, Any]:
        checkpoint = self._checkpoint_to_evaluate()
        folder = self.out / self.verb
        self._record(folder, checkpoint=checkpoint)
        arguments: dict[str, Any] = {"datamodule": self.datamodule, "ckpt_path": checkpoint, "weights_only": True}
        arguments |= {"return_predictions": False} if self.verb == "predict" else {"verbose": False}
        found = getattr(self.trainer, self.verb)(self.model, **arguments)
        metrics = {} if self.verb == "predict" else self._metrics({k: v for part in found for k, v in part.items()})
        result: dict[str, Any] = {"out": str(folder), "checkpoint": checkpoint, "metrics": metrics}
        for writer in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(writer, JsonLines):
                result |= {"predictions": str(writer.path(self.trainer)), "count": writer.count}
                logger.info("%d predictions: %s", writer.count, result["predictions"])
        if metrics and self.trainer.is_global_zero:
            with write_aside(folder / "metrics.json") as path:
                write_json(path, metrics)
        return result

    @staticmethod
    def _metrics(found: Any) -> dict[str, float]:
        return {name: float(value) for name, value in found.items()}

    def _record(self, folder: Path, **more: Any) -> None:
        if self.trainer.is_global_zero:
            seed = self.config.seed_everything
            write_record(folder, config_yaml=self.resolved(), seed=seed, command=self.command, verb=self.verb, **more)

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def _checkpoint_to_resume(self) -> str | None:
        """Checkpoint that `fit` continues from.

        Raises:
            FileNotFoundError: a named checkpoint does not exist.
            ValueError: the folder holds a run of another model, data or seed.
        """
        if self.config.resume == "never":
            return None
        if self.config.resume != "auto":
            return str(_existing(self.config.resume))
        last = self.out / "checkpoints" / LAST
        if not last.is_file():
            return None
        self._refuse_other_run(self.out / CONFIG_FILE)
        return str(last)

    def _refuse_other_run(self, path: Path) -> None:
        before = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
        now = yaml.safe_load(self.resolved())
        old, new = ({k: v for k, v in _flat(c).items() if k.startswith(SAME_RUN)} for c in (before, now))
        changed = [k for k in {**old, **new} if old.get(k) != new.get(k)]
        if changed:
            key = changed[0]
            others = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            raise ValueError(
                f"{self.out} holds a run of another configuration ({key}: {old.get(key)} before, {new.get(key)} now"
                f"{others}); choose another --out, or --resume never to overwrite it"
            )

    def _checkpoint_to_evaluate(self) -> str | None:
        if self.config.ckpt == "none":
            return None
        if self.config.ckpt != "auto":
            return str(_existing(self.config.ckpt))
        last = self.out / "checkpoints" / LAST
        if not last.is_file():
            raise FileNotFoundError(
                f"no checkpoint in {last.parent}: run mm fit first, name one with --ckpt, or evaluate "
                "untrained weights with --ckpt none"
            )
        return str(last)


def restrict_imports(allow: Sequence[str] = ()) -> None:
    """Let configuration files name classes of this toolkit, of Lightning, of torch and of `allow`, and no others.

    Entries of the catalog may be named wherever they live: somebody's code has put them there.
    """
    registered = [registry.path(name).split(":")[0] for registry in (MODULES, DATA) for name in registry]
    try:
        set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=[*ALLOWED, *registered, *allow])
    except ValueError as error:
        raise UsageError(f"--allow: {error}") from error


def _trainer_settings(parser: LightningArgumentParser) -> list[str]:
    return list(parser.get_defaults().trainer.keys())


def _existing(path: str) -> Path:
    if not Path(path).is_file():
        raise FileNotFoundError(f"no checkpoint {path}")
    return Path(path)


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


def _flat(data: Any, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    if not isinstance(data, dict):
        return {prefix: data}
    return {k: v for key, value in data.items() for k, v in _flat(value, f"{prefix}.{key}" if prefix else key).items()}
