"""One fold of a model that is fitted in closed form: statistics of utterances, a fit a value of the grid, one test.

The value is chosen as epochs are: the best UA over the validation utterances, ties by their loss. It is fitted to the
training utterances alone, so that a score stands beside those of models that are trained. Fits are in float64 on the
CPU, whatever the device; what is stored is float32, and predictions are made with what is stored.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import Ridge as RidgeRegression
from sklearn.svm import SVC
from threadpoolctl import threadpool_limits
from torch import Tensor

from mfhca_cache.errors import TrainingError
from mfhca_cache.folds import Fold
from mfhca_cache.models import build_model, count_parameters
from mfhca_cache.models.statistics import (
    SVM,
    ClosedFormSettings,
    Ridge,
    RidgeSettings,
    StatisticsModel,
    SVMSettings,
    kernel,
    moments,
    pool,
)
from mfhca_cache.progress import Progress, ProgressCallback, silent
from mfhca_cache.training.data import CorpusData, gather, masks
from mfhca_cache.training.job import Job, model_settings
from mfhca_cache.training.mapped import free_memory
from mfhca_cache.training.metrics import score
from mfhca_cache.training.record import fold_record, predictions, test_scores
from mfhca_cache.training.result import FoldResult
from mfhca_cache.training.step import LAUNCHED, predict

#: Numbers of a batch while statistics are taken, in float64.
_BATCH_NUMBERS = 2**23
#: The decision for a class that no training utterance has.
_NEVER = -100.0


@dataclass(frozen=True)
class Vectors:
    """Statistics of U utterances.

    Attributes:
        utterances: (U,) their numbers in the data, ascending.
        values: float32 (U, P) on the CPU.
        labels: int64 (U,).
    """

    utterances: np.ndarray
    values: Tensor
    labels: np.ndarray


def fit_fold(
    job: Job, fold: Fold, data: CorpusData, progress: ProgressCallback = silent
) -> Generator[bool, None, FoldResult]:
    """A fold as steps, one a value of the grid; returns the fold's result, whose curve has a row a value.

    Raises:
        TrainingError: statistics that are not finite, or more utterances than memory holds a kernel of.
    """
    started = time.monotonic()
    settings = cast(ClosedFormSettings, model_settings(job))
    clips = {part: data.clips_of(ids) for part, ids in _parts(fold).items()}
    vectors = {part: utterance_vectors(data, rows) for part, rows in clips.items()}
    train, validation, test = (vectors[part] for part in ("train", "validation", "test"))
    if not all(bool(part.values.isfinite().all()) for part in vectors.values()):
        raise TrainingError(f"fold {fold.number} ({fold.name}): statistics of {', '.join(job.roles.values())} overflow")
    mean, std = standardisation(train.values)
    with threadpool_limits(job.threads):
        begun = _begin(settings, (train.values.double() - mean) / std, train.labels, fold)
    best: tuple[float, float] = (-1.0, 0.0)
    chosen: StatisticsModel | None = None
    curve: list[dict[str, Any]] = []
    best_row = 0
    parameter = "C" if isinstance(settings, SVMSettings) else "alpha"
    for row, value in enumerate(settings.grid, 1):
        at = time.monotonic()
        # Sums depend on the cores that share them, and scikit-learn's libraries take all that there are.
        with threadpool_limits(job.threads):
            model = begun(value, tuple(job.roles))
        model.load_state_dict({**model.state_dict(), "mean": mean, "std": std})
        loss, wa, ua = _scores(model, validation)
        curve.append(
            {"epoch": row, parameter: value, "train_loss": _scores(model, train)[0], "validation_loss": loss,
             "validation_wa": wa, "validation_ua": ua, "seconds": round(time.monotonic() - at, 3)}
        )  # fmt: skip
        if fold.optimistic:
            curve[-1]["caveat"] = "; ".join(fold.warnings)
        if (ua, -loss) > best:
            best, best_row, chosen = (ua, -loss), row, model
        detail = f"validation UA {100 * ua:.1f} %, best {100 * best[0]:.1f} % with {parameter} "
        detail += f"{settings.grid[best_row - 1]:g}" + (
            " (optimistic: the test set is known)" if fold.optimistic else ""
        )
        progress(Progress(f"fold {fold.number} ({fold.name})", row, len(settings.grid), "values", detail=detail))
        yield LAUNCHED
    chosen = cast(StatisticsModel, chosen)  # A grid has a value, and any UA is better than none.
    of_utterances = log_probabilities(chosen, test.values)
    of_clips = yield from predict(chosen.to(job.device), data, clips["test"], None)
    record = fold_record(job, fold, chosen.settings, count_parameters(chosen))
    record |= {"step": "closed form", "best_epoch": best_row, "epochs": len(curve), "stopped": "grid"}
    record |= {"chosen": {parameter: settings.grid[best_row - 1]}, "validation": {"ua": best[0], "loss": -best[1]}}
    rows = clips["test"].cpu().numpy()
    record |= test_scores(data, rows, of_clips, len(job.classes.classes), of_utterances)
    record |= {"seconds": round(time.monotonic() - started, 3)}
    state = {name: value.cpu() for name, value in chosen.state_dict().items()}
    table = predictions(job, fold, data, rows, of_clips, of_utterances)
    return FoldResult(record, table, pd.DataFrame(curve), state)


def utterance_vectors(data: CorpusData, clips: Tensor) -> Vectors:
    """Mean and standard deviation over the signal frames of each utterance, of all features one after the other.

    Args:
        clips: rows of all clips of whole utterances, int64 (N,).
    """
    owner = data.owner[clips.cpu().numpy()]
    utterances, place = np.unique(owner, return_inverse=True)
    largest = max(int(np.prod(values.shape[1:])) for values in data.inputs.values())
    sums: dict[str, list[Tensor]] = {}
    done = 0
    for part in clips.split(max(1, _BATCH_NUMBERS // largest)):
        batch, signal = gather(data, part, None), masks(data, part)
        index = torch.from_numpy(place[done : done + len(part)])
        done += len(part)
        for name, values in batch.items():
            found = [each.cpu() for each in moments(values, signal.get(name))]
            if name not in sums:
                sums[name] = [each.new_zeros((len(utterances), *each.shape[1:])) for each in found]
            for total, each in zip(sums[name], found, strict=True):
                total.index_add_(0, index, each)
    parts = []
    for name in data.inputs:
        count, total, squares = sums[name]
        parts.append(pool(count, total, squares, name in data.frames))
    return Vectors(utterances, torch.cat(parts, 1), data.utterance_labels[utterances])


def standardisation(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of float32 (U, P), each float32 (P,); 1 where a number is always the same."""
    x = values.double()
    mean, std = x.mean(0), x.std(0, correction=0)
    same = std <= 1e-6 * mean.abs()
    return mean.float(), torch.where(same, 1.0, std).float()


def log_probabilities(model: StatisticsModel, values: Tensor) -> np.ndarray:
    """The softmax's logarithm of the decision values: float32 (U, P) → float32 (U, classes)."""
    with torch.no_grad():
        return np.asarray(model.scores(values).log_softmax(1).numpy())


def fit_ridge(x: Tensor, targets: Tensor, alpha: float, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weights W and intercepts b that make Σ_u weight_u ‖x_u Wᵀ + b - target_u‖² + alpha ‖W‖² the least.

    Args:
        x: float64 (U, P).
        targets: float64 (U, K).
        weights: float64 (U,), above 0.

    Returns:
        W float64 (K, P) and b (K,).
    """
    found = RidgeRegression(alpha, solver="cholesky").fit(x.numpy(), targets.numpy(), weights.numpy())
    return torch.from_numpy(found.coef_), torch.from_numpy(found.intercept_)


def fit_svms(gram: np.ndarray, labels: np.ndarray, classes: int, C: float, balanced: bool) -> tuple[Tensor, Tensor]:
    """Each class against the rest on a kernel float64 (U, U): dual coefficients float64 (K, U), intercepts (K,)."""
    dual, bias = torch.zeros(classes, len(labels), dtype=torch.float64), torch.full((classes,), _NEVER).double()
    for number in np.unique(labels):
        svm = SVC(C=C, kernel="precomputed", class_weight="balanced" if balanced else None)
        svm.fit(gram, labels == number)
        dual[number, torch.from_numpy(svm.support_.astype(np.int64))] = torch.from_numpy(svm.dual_coef_[0])
        bias[number] = float(svm.intercept_[0])
    return dual, bias


def _begin(
    settings: ClosedFormSettings, x: Tensor, labels: np.ndarray, fold: Fold
) -> Callable[[float, tuple[str, ...]], StatisticsModel]:
    """What all values of the grid share is made once; (value, names of the features) → the fitted model."""
    classes, present = settings.n_classes, np.unique(labels)
    if len(present) < 2:
        raise TrainingError(f"fold {fold.number} ({fold.name}): training has one class; expected two at least")
    if isinstance(settings, SVMSettings):
        needed = 3 * 8 * len(x) ** 2
        if needed > free_memory("cpu"):
            raise TrainingError(
                f"fold {fold.number} ({fold.name}): the kernel of {len(x):,} utterances takes {needed / 1e9:.0f} GB, "
                "more than is free; --model ridge needs none"
            )
        gram = kernel(x, x, settings.kernel).numpy()

        def fit_svm(value: float, names: tuple[str, ...]) -> StatisticsModel:
            dual, bias = fit_svms(gram, labels, classes, value, settings.balanced)
            support = (dual != 0).any(0)
            model = build_model("svm", names, replace(settings, support_vectors=int(support.sum())))
            state = {"vectors": x[support], "dual": dual[:, support], "bias": bias}
            model.load_state_dict(model.state_dict() | state)
            return cast(SVM, model)

        return fit_svm
    counts = np.bincount(labels, minlength=classes)
    weights = len(labels) / (len(present) * counts[labels]) if settings.balanced else np.ones(len(labels))
    targets = np.where(labels[:, None] == np.arange(classes), 1.0, -1.0)

    def fit(value: float, names: tuple[str, ...]) -> StatisticsModel:
        weight, bias = fit_ridge(x, torch.from_numpy(targets), value, torch.from_numpy(weights))
        bias[torch.from_numpy(counts == 0)] = _NEVER
        model = build_model("ridge", names, cast(RidgeSettings, settings))
        model.load_state_dict(model.state_dict() | {"weight": weight, "bias": bias})
        return cast(Ridge, model)

    return fit


def _scores(model: StatisticsModel, of: Vectors) -> tuple[float, float, float]:
    """Cross entropy, WA and UA over utterances."""
    found = log_probabilities(model, of.values)
    scores = score(of.labels, found.argmax(1))
    return float(-found[np.arange(len(found)), of.labels].mean()), scores.wa, scores.ua


def _parts(fold: Fold) -> dict[str, tuple[str, ...]]:
    return {"train": tuple(fold.train), "validation": tuple(fold.validation), "test": tuple(fold.test)}
