"""One fold: train, stop when the validation utterances stop getting better, test once.

The loop is plain: data on the device, one step a batch, one evaluation an epoch. The same seed gives the same numbers
on one machine, whichever folds are trained before it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mfhca_cache.errors import TrainingError
from mfhca_cache.folds import Fold, choose_folds
from mfhca_cache.models import build_model, count_parameters
from mfhca_cache.progress import Progress, ProgressCallback, silent
from mfhca_cache.storage.cache import Cache
from mfhca_cache.training.data import CorpusData, Scaling, fit_scaling, gather
from mfhca_cache.training.job import Job, check_folds, load_job_data, model_settings, prepare
from mfhca_cache.training.metrics import by_utterance, score
from mfhca_cache.training.options import Recipe, TrainOptions
from mfhca_cache.training.record import fold_record, predictions, test_scores
from mfhca_cache.training.result import FoldResult

_EVALUATION_CLIPS = 64


def train_fold(
    cache: Cache,
    fold: int | str | Fold,
    options: TrainOptions | None = None,
    *,
    device: str = "auto",
    job: Job | None = None,
    data: CorpusData | None = None,
    progress: ProgressCallback = silent,
) -> FoldResult:
    """Train one fold and test it.

    Args:
        cache: from `mfhca_cache.open_cache`.
        fold: a number from 1, a speaker's name, or a `Fold`.
        options: model, features, preset, protocol, seed; by default as the paper states.
        device: auto, cpu or cuda.
        job, data: from `prepare` and `load_job_data`, where several folds share them.
        progress: called after each epoch.

    Raises:
        TrainingError: splits not extracted, a feature that the cache lacks, or a loss that is not finite.
        FoldError: no such fold, or one whose test set is known in training.
    """
    job = job or prepare(cache, options or TrainOptions(), device)
    chosen = fold if isinstance(fold, Fold) else choose_folds(job.folds, fold)[0]
    check_folds(job, [chosen])
    data = data or load_job_data(job, [chosen], progress)
    started = time.monotonic()
    with _repeatable(job.options.seed, chosen.number):
        settings = model_settings(job)
        model = build_model(job.options.model, tuple(job.roles), settings).to(job.device)
        if job.device == "cpu":
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        train, validation, test = (data.clips_of(ids) for ids in (chosen.train, chosen.validation, chosen.test))
        scaling = fit_scaling(data, train)
        fit = _fit(model, data, scaling, train, validation, job.options, chosen, progress)
        model.load_state_dict(fit.state)
        log_probabilities = evaluate(model, data, test, scaling)
    record = fold_record(job, chosen, settings, count_parameters(model))
    record |= {"best_epoch": fit.best_epoch, "epochs": len(fit.curve), "stopped": fit.stopped}
    record |= {"validation": {"ua": fit.best[0], "loss": -fit.best[1]}}
    record |= test_scores(data, rows := test.cpu().numpy(), log_probabilities, len(job.classes.classes))
    record |= {"seconds": round(time.monotonic() - started, 3)}
    state = {name: value.cpu() for name, value in fit.state.items()}
    if scaling is not None:
        state |= {"scaling.mean": scaling.mean.cpu(), "scaling.std": scaling.std.cpu()}
    return FoldResult(record, predictions(job, chosen, data, rows, log_probabilities), pd.DataFrame(fit.curve), state)


@dataclass
class _Fit:
    """The best epoch so far and the learning curve."""

    state: dict[str, Tensor]
    best_epoch: int
    best: tuple[float, float]
    curve: list[dict[str, Any]]
    stopped: str


def _fit(
    model: nn.Module,
    data: CorpusData,
    scaling: Scaling | None,
    train: Tensor,
    validation: Tensor,
    options: TrainOptions,
    fold: Fold,
    progress: ProgressCallback,
) -> _Fit:
    """Train until `patience` epochs bring no better validation UA (ties: no lower loss), or `epochs` are done."""
    recipe = options.recipe
    optimiser = _optimiser(model, recipe)
    shuffle = torch.Generator().manual_seed(_seed(options.seed, fold.number))
    fit = _Fit({}, 0, (-1.0, 0.0), [], "limit")
    for epoch in range(1, recipe.epochs + 1):
        started = time.monotonic()
        order = train[torch.randperm(len(train), generator=shuffle).to(train.device)]
        model.train()
        losses = [train_step(model, optimiser, data, clips, scaling) for clips in order.split(recipe.batch)]
        train_loss = float(torch.stack(losses).mean())
        if not np.isfinite(train_loss):
            raise TrainingError(f"fold {fold.number} ({fold.name}): the loss became {train_loss} in epoch {epoch}")
        loss, wa, ua = _validate(model, data, validation, scaling)
        seconds = round(time.monotonic() - started, 3)
        fit.curve.append(
            {"epoch": epoch, "train_loss": train_loss, "validation_loss": loss, "validation_wa": wa,
             "validation_ua": ua, "seconds": seconds}
        )  # fmt: skip
        if fold.optimistic:
            fit.curve[-1]["caveat"] = "; ".join(fold.warnings)
        if (ua, -loss) > fit.best:
            fit.best, fit.best_epoch = (ua, -loss), epoch
            fit.state = {name: value.detach().clone() for name, value in model.state_dict().items()}
        detail = f"validation UA {100 * ua:.1f} %, best {100 * fit.best[0]:.1f} % in epoch {fit.best_epoch}"
        detail += " (optimistic: the test set is known)" if fold.optimistic else ""
        progress(Progress(f"fold {fold.number} ({fold.name})", epoch, recipe.epochs, "epochs", detail=detail))
        if epoch - fit.best_epoch >= recipe.patience:
            fit.stopped = "patience"
            break
    return fit


def train_step(
    model: nn.Module, optimiser: torch.optim.Optimizer, data: CorpusData, clips: Tensor, scaling: Scaling | None
) -> Tensor:
    """One step of cross entropy on a batch of clips; its loss, a scalar on the device."""
    optimiser.zero_grad(set_to_none=True)
    loss = F.cross_entropy(model(**gather(data, clips, scaling)), data.labels[clips])
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    return loss.detach()


def evaluate(model: nn.Module, data: CorpusData, clips: Tensor, scaling: Scaling | None) -> np.ndarray:
    """Log-probabilities of clips, float32 (clips, classes), without dropout."""
    model.eval()
    with torch.inference_mode():
        parts = [model(**gather(data, part, scaling)).log_softmax(1) for part in clips.split(_EVALUATION_CLIPS)]
        return torch.cat(parts).cpu().numpy()


def _validate(model: nn.Module, data: CorpusData, clips: Tensor, scaling: Scaling | None) -> tuple[float, float, float]:
    """Cross entropy over clips, and WA and UA over utterances."""
    log_probabilities = evaluate(model, data, clips, scaling)
    rows = clips.cpu().numpy()
    loss = -log_probabilities[np.arange(len(rows)), data.labels[clips].cpu().numpy()].mean()
    utterances, _, mean = by_utterance(log_probabilities, data.owner[rows])
    scores = score(data.utterance_labels[utterances], mean.argmax(1))
    return float(loss), scores.wa, scores.ua


def _optimiser(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[recipe.optimiser]
    return kind(model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)


def _seed(seed: int, fold: int) -> int:
    """One seed a fold, so that a fold's numbers do not depend on which others are trained."""
    return int(np.random.SeedSequence([seed, fold]).generate_state(1)[0])


@contextlib.contextmanager
def _repeatable(seed: int, fold: int) -> Iterator[None]:
    """Seeded generators, deterministic kernels and full float32, restored afterwards."""
    deterministic, warn = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32
    empty = torch.utils.deterministic
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Nothing here reads memory that it has not written; filling it costs a pass over every new tensor.
    fill, empty.fill_uninitialized_memory = empty.fill_uninitialized_memory, False  # type: ignore[attr-defined]
    cudnn.benchmark = cudnn.allow_tf32 = matmul.allow_tf32 = False
    try:
        with torch.random.fork_rng():
            torch.manual_seed(_seed(seed, fold))
            yield
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=warn)
        empty.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
        cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = before
