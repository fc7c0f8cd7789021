"""One fold: train, stop when the validation utterances stop getting better, test once.

The loop is plain: data on the device, one step a batch, one evaluation an epoch. It is written as a generator that
yields behind each step, so that folds can take turns on one device. The same seed gives the same numbers on one
machine, whichever folds are trained before it or beside it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from mfhca_cache.errors import TrainingError
from mfhca_cache.folds import Fold, choose_folds
from mfhca_cache.models import count_parameters
from mfhca_cache.models.own import OwnModel
from mfhca_cache.progress import Progress, ProgressCallback, silent
from mfhca_cache.storage.cache import Cache
from mfhca_cache.training.captured import capture_step
from mfhca_cache.training.closed_form import fit_fold
from mfhca_cache.training.data import CorpusData, Scaling, fit_scaling
from mfhca_cache.training.interleave import Steps, side_by_side
from mfhca_cache.training.job import Job, check_folds, load_job_data, make_model, model_settings, prepare
from mfhca_cache.training.mapped import MappedFeature
from mfhca_cache.training.metrics import by_utterance, score
from mfhca_cache.training.options import Recipe, TrainOptions
from mfhca_cache.training.record import fold_record, predictions, test_scores
from mfhca_cache.training.result import FoldResult
from mfhca_cache.training.step import LAUNCHED, Step, device_done, evaluate, make_optimiser, predict, train_step

__all__ = ["evaluate", "fold_steps", "repeatable", "train_fold", "train_folds", "train_step"]


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
        TrainingError: splits not extracted, a feature that the cache lacks, a loss that is not finite, or an error
            in a model of the reader's own.
        FoldError: no such fold, or one whose test set is known in training.
    """
    job = job or prepare(cache, options or TrainOptions(), device)
    chosen = fold if isinstance(fold, Fold) else choose_folds(job.folds, fold)[0]
    check_folds(job, [chosen])
    data = data or load_job_data(job, [chosen], progress)
    results: list[FoldResult] = []
    train_folds(job, [chosen], data, results.append, progress)
    return results[0]


def train_folds(
    job: Job,
    folds: Sequence[Fold],
    data: CorpusData,
    done: Callable[[FoldResult], None],
    progress: ProgressCallback = silent,
    at_once: int | None = 1,
) -> None:
    """Train folds in this process and test them.

    Args:
        job, data: from `prepare` and `load_job_data`.
        done: called with each result, as folds end.
        progress: called after each epoch.
        at_once: how many folds take turns on the device; None for as many as a GPU's memory holds.

    Raises:
        TrainingError: a loss that is not finite, an error in a model of the reader's own, or too little GPU memory.
    """

    def begin(fold: Fold) -> Steps[FoldResult]:
        return fold_steps(job, fold, data, progress)

    def seed(fold: Fold) -> int:
        return _seed(job.options.seed, fold.number)

    with repeatable(job.threads, fill=job.own is not None):
        side_by_side(folds, begin, done, seed=seed, device=job.device, at_once=at_once)


def fold_steps(
    job: Job, fold: Fold, data: CorpusData, progress: ProgressCallback = silent
) -> Generator[bool, None, FoldResult]:
    """A fold as steps: yields behind each that was launched, and returns the fold's result.

    Between two of its steps others may use the device, torch's generators apart (`interleave.RandomState`). The fold of
    the same number in ``job.beside`` is watched in the same training, and its result comes as `FoldResult.beside`.
    """
    if job.options.closed_form:
        return (yield from fit_fold(job, fold, data, progress))
    started = time.monotonic()
    model = make_model(job, settings := model_settings(job))
    folds = [fold, *(other for other in job.beside if other.number == fold.number)]
    train = data.clips_of(fold.train)
    scaling = fit_scaling(data, train)
    choices, step = yield from _fit(model, data, scaling, train, folds, job.options, progress)
    found: list[FoldResult] = []
    for choice in choices:
        test = data.clips_of(choice.fold.test)
        model.load_state_dict(choice.state)
        log_probabilities = yield from predict(model, data, test, scaling, job.options.precision)
        if np.isnan(log_probabilities).any():
            raise TrainingError(f"fold {fold.number} ({fold.name}): the trained model gives NaN for test clips")
        record = fold_record(job, choice.fold, settings, count_parameters(model))
        record |= {"step": step, "best_epoch": choice.best_epoch, "epochs": len(choice.curve)}
        record |= {"stopped": choice.stopped, "validation": {"ua": choice.best[0], "loss": -choice.best[1]}}
        record |= test_scores(data, rows := test.cpu().numpy(), log_probabilities, len(job.classes.classes))
        record |= {"seconds": round(time.monotonic() - started, 3)}
        state = {name: value.cpu() for name, value in choice.state.items()}
        if scaling is not None:
            state |= {"scaling.mean": scaling.mean.cpu(), "scaling.std": scaling.std.cpu()}
        table = predictions(job, choice.fold, data, rows, log_probabilities)
        found.append(FoldResult(record, table, pd.DataFrame(choice.curve), state))
    return replace(found[0], beside=tuple(found[1:]))


@dataclass
class _Choice:
    """A choice of the epoch on a fold's validation clips: the best so far, and the learning curve until it ended."""

    fold: Fold
    clips: Tensor
    state: dict[str, Tensor] = field(default_factory=dict)
    best_epoch: int = 0
    best: tuple[float, float] = (-1.0, 0.0)
    curve: list[dict[str, Any]] = field(default_factory=list)
    stopped: str = "limit"

    def look(self, model: nn.Module, row: dict[str, Any], patience: int) -> None:
        """Take an epoch's row of the curve: its model is the best so far, or patience may be spent."""
        self.curve.append(row | ({"caveat": "; ".join(self.fold.warnings)} if self.fold.optimistic else {}))
        epoch, reached = row["epoch"], (row["validation_ua"], -row["validation_loss"])
        if reached > self.best:
            self.best, self.best_epoch = reached, epoch
            self.state = {name: value.detach().clone() for name, value in model.state_dict().items()}
        if epoch - self.best_epoch >= patience:
            self.stopped = "patience"

    @property
    def news(self) -> str:
        """The last epoch, in words."""
        marked = " (optimistic: the test set is known)" if self.fold.optimistic else ""
        ua = self.curve[-1]["validation_ua"]
        return f"validation UA {100 * ua:.1f} %, best {100 * self.best[0]:.1f} % in epoch {self.best_epoch}{marked}"


def _fit(
    model: nn.Module,
    data: CorpusData,
    scaling: Scaling | None,
    train: Tensor,
    folds: Sequence[Fold],
    options: TrainOptions,
    progress: ProgressCallback,
) -> Generator[bool, None, tuple[list[_Choice], str]]:
    """Train, and choose the epoch on each fold's validation utterances by itself; the choices, and what the step was.

    A choice ends when `patience` epochs brought it no better validation UA (ties: no lower loss); training ends with
    the last of them, or when `epochs` are done. The folds have one training set. The first one's numbers are the same
    whether others are watched beside it or not.
    """
    recipe, fold = options.recipe, folds[0]
    optimiser = make_optimiser(model, recipe)
    step: Step = partial(train_step, model, optimiser, data, scaling=scaling, precision=options.precision)
    shuffle = torch.Generator().manual_seed(_seed(options.seed, fold.number))
    choices = left = [_Choice(item, data.clips_of(item.validation)) for item in folds]
    kind = "plain"
    model.train()
    if train.is_cuda and len(train) >= recipe.batch:
        step, kind = _captured(step, model, optimiser, data, train[: recipe.batch])
    for epoch in range(1, recipe.epochs + 1):
        started = time.monotonic()
        order = train[epoch_order(data.labels[train], recipe.sampling, shuffle).to(train.device)]
        model.train()
        batches = list(order.split(recipe.batch))
        if isinstance(model, OwnModel) and len(batches) > 1 and len(batches[-1]) == 1:
            batches.pop()  # Batch norm over a single vector is an error; ours never normalise one.
        losses = []
        for clips in batches:
            losses.append(step(clips))
            yield LAUNCHED
        mean_loss = torch.stack(losses).mean()
        yield from device_done(mean_loss)
        train_loss = float(mean_loss)
        _refuse_not_finite("loss", train_loss, fold, epoch, recipe)
        for choice in left:
            with contextlib.nullcontext() if choice is choices[0] else _only_watching(model, train):
                log_probabilities = yield from predict(model, data, choice.clips, scaling, options.precision)
            loss, wa, ua = _validation_scores(log_probabilities, data, choice.clips)
            _refuse_not_finite("validation loss", loss, choice.fold, epoch, recipe)
            scores = {"validation_loss": loss, "validation_wa": wa, "validation_ua": ua}
            seconds = round(time.monotonic() - started, 3)
            row = {"epoch": epoch, "train_loss": train_loss, **scores, "seconds": seconds}
            choice.look(model, row, recipe.patience)
        news = left[0].news
        left = [choice for choice in left if choice.stopped == "limit"]
        # A fold's last report has as many done as there are, so that whoever shows them knows it.
        total = recipe.epochs if left else epoch
        progress(Progress(f"fold {fold.number} ({fold.name})", epoch, total, "epochs", detail=news))
        if not left:
            break
    return choices, kind


def _only_watching(model: nn.Module, clips: Tensor) -> contextlib.AbstractContextManager[None]:
    """What is drawn from torch's generators within this is put back: a model of the reader's own may draw always."""
    if not isinstance(model, OwnModel):
        return contextlib.nullcontext()  # Ours draw nothing without dropout.
    return torch.random.fork_rng(devices=[clips.device] if clips.is_cuda else [])


def epoch_order(labels: Tensor, sampling: str, generator: torch.Generator) -> Tensor:
    """Which of N training clips an epoch takes, in which order: int64 (N,) on the CPU.

    Args:
        labels: (N,) int64.
        sampling: of `mfhca_cache.training.options.Recipe`.
        generator: on the CPU.
    """
    if sampling == "shuffled":
        return torch.randperm(len(labels), generator=generator)
    counts = labels.cpu().bincount()
    return (1.0 / counts)[labels.cpu()].multinomial(len(labels), replacement=True, generator=generator)


def _captured(
    plain: Step, model: nn.Module, optimiser: torch.optim.Optimizer, data: CorpusData, clips: Tensor
) -> tuple[Step, str]:
    """The step as a CUDA graph where that can be, else the plain one; and which it is, in words."""
    if isinstance(model, OwnModel):
        return plain, "plain"  # A graph would not see what the reader's Python does from step to step.
    if any(isinstance(values, MappedFeature) for values in data.inputs.values()):
        return plain, "plain"  # Batches come from the host.
    try:
        return capture_step(plain, model, optimiser, clips), "captured"
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        return plain, f"plain; CUDA could not capture it ({str(error).splitlines()[0]})"


def _validation_scores(log_probabilities: np.ndarray, data: CorpusData, clips: Tensor) -> tuple[float, float, float]:
    """Cross entropy over clips, and WA and UA over utterances."""
    rows = clips.cpu().numpy()
    loss = -log_probabilities[np.arange(len(rows)), data.labels[clips].cpu().numpy()].mean()
    utterances, _, mean = by_utterance(log_probabilities, data.owner[rows])
    scores = score(data.utterance_labels[utterances], mean.argmax(1))
    return float(loss), scores.wa, scores.ua


def _refuse_not_finite(what: str, value: float, fold: Fold, epoch: int, recipe: Recipe) -> None:
    if not np.isfinite(value):
        raise TrainingError(
            f"fold {fold.number} ({fold.name}): the {what} became {value} in epoch {epoch}; the learning rate "
            f"({recipe.learning_rate:g}) may be too high, or the model divides by zero or takes the log of it"
        )


def _seed(seed: int, fold: int) -> int:
    """One seed a fold, so that a fold's numbers do not depend on which others are trained."""
    return int(np.random.SeedSequence([seed, fold]).generate_state(1)[0])


@contextlib.contextmanager
def repeatable(threads: int, fill: bool) -> Iterator[None]:
    """Deterministic kernels, full float32 and a fixed number of threads; all of it restored afterwards.

    Args:
        threads: of one operation on the CPU: sums depend on how many share them.
        fill: set new tensors to NaN, so that a model which reads memory that it has not written is found out.
    """
    deterministic, warn = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    before_threads = torch.get_num_threads()
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32
    empty = torch.utils.deterministic
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Nothing of ours reads memory that it has not written, and filling it costs a pass over every new tensor.
    filled, empty.fill_uninitialized_memory = empty.fill_uninitialized_memory, fill  # type: ignore[attr-defined]
    cudnn.benchmark = cudnn.allow_tf32 = matmul.allow_tf32 = False
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before_threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn)
        empty.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
        cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = before
