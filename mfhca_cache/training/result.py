"""What a trained fold leaves: scores, predictions, the learning curve and a checkpoint that rebuilds its model.

``fold04/`` holds result.json, predictions.csv, curve.csv and model.safetensors. The folder appears whole or not at all.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mfhca_cache.errors import CacheError, TrainingError
from mfhca_cache.models import SETTINGS, build_model
from mfhca_cache.models.own import SCALING_KEYS, rebuild_own
from mfhca_cache.storage.publish import sync_folder
from mfhca_cache.storage.shard import read_json
from mfhca_cache.training.data import Scaling
from mfhca_cache.training.record import REQUIRED_KEYS, RESULT_FORMAT


@dataclass(frozen=True)
class FoldResult:
    """A trained fold.

    Attributes:
        record: what result.json holds: fold, protocol, scores at both levels, confusion matrices, best epoch,
            settings, fingerprints, versions.
        predictions: a row a test utterance: utterance_id, speaker, clips, label, prediction, ``p_<class>``.
        curve: a row an epoch: epoch, train_loss, validation_loss, validation_wa, validation_ua, seconds.
        state: the best epoch's weights and the scaling, name → tensor.
        beside: results of the same training whose epoch was chosen on other utterances, where it was watched for that
            (`mfhca_cache.training.gap`); a fold that was read from its folder has none.
    """

    record: dict[str, Any]
    predictions: pd.DataFrame
    curve: pd.DataFrame
    state: dict[str, Tensor]
    beside: tuple[FoldResult, ...] = ()

    @property
    def number(self) -> int:
        """The fold's number, from 1."""
        return int(self.record["fold"])

    @property
    def ua(self) -> float:
        """Unweighted accuracy over test utterances, 0…1."""
        return float(self.record["scores"]["utterance"]["ua"])

    @property
    def wa(self) -> float:
        """Weighted accuracy over test utterances, 0…1."""
        return float(self.record["scores"]["utterance"]["wa"])

    def model(self, model_class: type[nn.Module] | None = None) -> nn.Module:
        """The trained model, in eval mode on the CPU.

        Args:
            model_class: of a model of the reader's own; a result holds its weights, not its code.

        Raises:
            TrainingError: no class where one is needed, or one that does not fit the weights.
        """
        return _rebuild(self.record, self.state, model_class)


def fold_folder(run: Path, number: int) -> Path:
    """``<run>/fold04`` for 4."""
    return run / f"fold{number:02d}"


def write_fold(run: Path, result: FoldResult) -> Path:
    """Write a fold's folder by one rename; an existing one is kept.

    Raises:
        TrainingError: the disk is full or the folder is read-only; nothing is left behind.
    """
    folder = fold_folder(run, result.number)
    for leftover in run.glob(f".{folder.name}.*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)  # What a killed writer left.
    temporary = run / f".{folder.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
    try:
        temporary.mkdir(parents=True)
        (temporary / "result.json").write_text(json.dumps(result.record, indent=2, allow_nan=False) + "\n")
        result.predictions.to_csv(temporary / "predictions.csv", index=False, lineterminator="\n")
        result.curve.to_csv(temporary / "curve.csv", index=False, lineterminator="\n")
        description = {"mfhca": json.dumps(_description(result.record))}
        save_file({k: v.contiguous() for k, v in result.state.items()}, temporary / "model.safetensors", description)
        for path in temporary.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        if folder.exists() and not (folder / "result.json").exists():
            shutil.rmtree(folder)  # Somebody deleted the result to have it made again.
        if not folder.exists():
            temporary.rename(folder)
            sync_folder(run)
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"{folder}: could not be written ({error}); check free space and permissions") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def read_fold(folder: Path) -> FoldResult:
    """Read what `write_fold` wrote.

    Raises:
        TrainingError: something is missing or damaged.
    """
    record, predictions = read_record(folder), read_predictions(folder)
    try:
        curve = pd.read_csv(folder / "curve.csv")
        with safe_open(folder / "model.safetensors", framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise TrainingError(f"{folder}: not readable as a fold ({error}); delete it and train it again") from error
    return FoldResult(record, predictions, curve, state)


def read_record(folder: Path) -> dict[str, Any]:
    """A fold's result.json alone.

    Raises:
        TrainingError: missing, damaged, or of another format.
    """
    try:
        record = read_json(folder / "result.json")
        if record.get("format") != RESULT_FORMAT:
            raise CacheError(f"format {record.get('format')!r}, expected {RESULT_FORMAT}")
        if absent := [key for key in REQUIRED_KEYS if key not in record]:
            raise CacheError(f"{', '.join(absent)} missing")
    except CacheError as error:
        raise TrainingError(f"{folder}: not readable as a fold ({error}); delete it and train it again") from error
    return record


def read_predictions(folder: Path) -> pd.DataFrame:
    """A fold's predictions.csv alone; see `FoldResult`.

    Raises:
        TrainingError: missing or damaged.
    """
    texts = dict.fromkeys(("utterance_id", "speaker", "label", "prediction"), str)
    try:
        table = pd.read_csv(folder / "predictions.csv", dtype=texts, keep_default_na=False)
        if absent := [name for name in texts if name not in table]:
            raise ValueError(f"columns {', '.join(absent)} missing")
    except (OSError, ValueError) as error:
        raise TrainingError(
            f"{folder / 'predictions.csv'}: not readable ({error}); delete {folder.name} and train it again"
        ) from error
    return table


def load_checkpoint(
    path: str | Path, model_class: type[nn.Module] | None = None
) -> tuple[nn.Module, Scaling | None, dict[str, Any]]:
    """A fold's model from its model.safetensors alone: the model in eval mode, its scaling, and its description.

    Args:
        model_class: of a model of the reader's own. A checkpoint only names it, and a name in a file never decides
            which code is run.

    Raises:
        TrainingError: no such file, not one of ours, or of a model whose class was not given.
    """
    try:
        with safe_open(path, framework="pt") as file:
            description = json.loads((file.metadata() or {})["mfhca"])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
    except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
        raise TrainingError(f"{path}: not a checkpoint of mfhca-cache ({error})") from error
    model = _rebuild(description, state, model_class, path)
    mean = state.get("scaling.mean")
    return model, None if mean is None else Scaling(mean, state["scaling.std"]), description


def _description(record: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint must know to rebuild its model, and whose it is."""
    keys = ("model", "inputs", "model_settings", "classes", "corpus", "fold", "name", "protocol", "caveats")
    return {key: record[key] for key in keys} | {"model_source": record.get("model_source")}


def _rebuild(
    description: dict[str, Any],
    state: dict[str, Tensor],
    model_class: type[nn.Module] | None,
    what: str | Path = "this result",
) -> nn.Module:
    """The model of a record or of a checkpoint's description, with its weights, in eval mode."""
    try:
        name, source = str(description["model"]), description.get("model_source")
        with torch.random.fork_rng(devices=[]):
            if source is None:
                settings = SETTINGS[name].from_dict(description["model_settings"])
                model = build_model(name, tuple(description["inputs"]), settings)
            elif model_class is None:
                short = name.rpartition(":")[2]
                raise TrainingError(
                    f"{what} holds the weights of {name} ({source['file']}) and not its code; give the class, as in "
                    f"load_checkpoint(path, {short}) or result.model({short})"
                )
            else:
                model = rebuild_own(model_class, description["model_settings"], source["sha256"])
        model.load_state_dict({key: value for key, value in state.items() if key not in SCALING_KEYS})
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        kind = "the weights of this class" if model_class else "a checkpoint of mfhca-cache"
        raise TrainingError(f"{what}: not {kind} ({error})") from error
    return model.eval()
