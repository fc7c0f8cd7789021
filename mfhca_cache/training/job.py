"""What the folds of one run share: the cache, the options, the features by role, the utterances in use, the folds."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

import pandas as pd
import torch
from torch import nn

from mfhca_cache.device import resolve_device, usable_cores
from mfhca_cache.errors import TrainingError
from mfhca_cache.folds import CROSS_CORPUS, Fold, check_speakers, make_folds
from mfhca_cache.labels import ClassMap
from mfhca_cache.models import build_model
from mfhca_cache.models.alexnet import AlexNet, WeightsFile, find_weights, load_weights
from mfhca_cache.models.own import ModelSource, OwnSettings, build_own, find_model
from mfhca_cache.models.settings import ModelSettings
from mfhca_cache.progress import ProgressCallback, silent
from mfhca_cache.splits.imported import imported_folds, refuse_leaks
from mfhca_cache.storage.cache import Cache
from mfhca_cache.storage.layout import FeatureInfo
from mfhca_cache.training.cross_corpus import check_pair, is_tested, joint_table, make_cross_fold, own_name
from mfhca_cache.training.data import (
    Allocate,
    CorpusData,
    Part,
    labelled_utterances,
    load_data,
    require_extracted,
    resolve_features,
)
from mfhca_cache.training.options import FROM_THE_CACHE, FROM_THE_FIT, TrainOptions


@dataclass(frozen=True)
class Job:
    """All that the folds of one run share.

    Attributes:
        options: of the run.
        roles: role → feature of the cache.
        table: the utterances in use, with their class.
        classes: the class map.
        folds: every fold of the protocol.
        device: cpu or cuda.
        threads: of a fold on the CPU. They do not depend on how many folds are trained, or on how many at once: sums
            differ in their last digits with the threads that share them.
        folds_from: name, shape and SHA-256 of the file that the folds were imported from; None for our protocols.
        own: the model's class and its file, where it is the reader's own.
        alexnet: the file that AlexNet's convolutions start from, where the options name one.
        beside: folds of another protocol with the training sets of ``folds``, number by number: their epochs are
            chosen in the same trainings (`mfhca_cache.training.gap`).
        test_cache, test_classes: the cache that is tested and the class map of its corpus, where it is another one;
            names in ``table`` and ``folds`` are then told apart (`mfhca_cache.training.cross_corpus`).
    """

    cache: Cache
    options: TrainOptions
    roles: dict[str, str]
    table: pd.DataFrame
    classes: ClassMap
    folds: list[Fold]
    device: str
    threads: int
    folds_from: dict[str, Any] | None = None
    own: ModelSource | None = None
    alexnet: WeightsFile | None = None
    beside: tuple[Fold, ...] = ()
    test_cache: Cache | None = None
    test_classes: ClassMap | None = None

    def own_names(self, names: Iterable[str]) -> list[str]:
        """Names of utterances or speakers as their corpora have them."""
        return list(names) if self.test_cache is None else [own_name(name) for name in names]

    def parts(self, table: pd.DataFrame) -> list[Part]:
        """Rows of ``table`` by the cache that holds them."""
        if self.test_cache is None:
            return [Part(self.cache, table, list(table["utterance_id"]))]
        tested = is_tested(table["utterance_id"])
        pairs = ((self.cache, table[~tested]), (self.test_cache, table[tested]))
        return [Part(cache, rows, self.own_names(rows["utterance_id"])) for cache, rows in pairs if len(rows)]


def prepare(cache: Cache, options: TrainOptions, device: str = "auto", test_cache: Cache | None = None) -> Job:
    """Resolve what a run needs, without reading features.

    Args:
        test_cache: train on ``cache`` and test on this one, which must hold the same features of another corpus; the
            protocol is then ``cross-corpus``.

    Raises:
        TrainingError, FoldError, LabelError: the cache lacks a feature, the corpus has no such fold or class, there is
            no such model or file of weights, or the two caches are no fair pair.
    """
    own = find_model(options.model) if options.own else None
    weights = "" if options.own else getattr(options.settings, "alexnet_weights", "")
    alexnet = find_weights(weights) if weights else None
    roles = resolve_features(cache, options.features, options.model)
    if test_cache is not None or options.protocol == CROSS_CORPUS:
        return _prepare_pair(cache, test_cache, options, roles, own, alexnet, device)
    table, classes = labelled_utterances(cache, options.classes, roles.values())
    source = None
    if options.folds is None:
        folds = make_folds(table, options.protocol, options.seed)
    else:
        folds, source = imported_folds(cache.plan.utterances, table, options.folds, options.seed)
    threads = options.threads or max(1, usable_cores() // len(folds))
    return Job(cache, options, roles, table, classes, folds, resolve_device(device), threads, source, own, alexnet)


def _prepare_pair(
    cache: Cache,
    test_cache: Cache | None,
    options: TrainOptions,
    roles: dict[str, str],
    own: ModelSource | None,
    alexnet: WeightsFile | None,
    device: str,
) -> Job:
    """`prepare` for a run that trains on one corpus and tests on another."""
    if test_cache is None:
        raise TrainingError(f"protocol {CROSS_CORPUS} needs a second cache to test on; name it with --test-cache")
    if options.protocol == "strict":
        options = replace(options, protocol=CROSS_CORPUS)
    elif options.protocol != CROSS_CORPUS:
        raise TrainingError(f"got both the protocol {options.protocol!r} and a cache to test on; expected one of them")
    check_pair(cache, test_cache, roles.values())
    table, classes, test_classes = joint_table(cache, test_cache, options.classes, roles.values())
    fold = make_cross_fold(table, classes, test_cache.corpus, options.seed)
    where, threads = resolve_device(device), options.threads or usable_cores()
    return Job(
        cache, options, roles, table, classes, [fold], where, threads, None, own, alexnet,
        test_cache=test_cache, test_classes=test_classes,
    )  # fmt: skip


def check_folds(job: Job, folds: list[Fold]) -> None:
    """Refuse folds whose test set is known in training, unless the options allow it.

    Raises:
        FoldError: what leaks.
    """
    if job.options.allow_leaks:
        return
    refuse_leaks(folds)
    for fold in folds:
        check_speakers(job.table, fold)


def load_job_data(
    job: Job, folds: list[Fold], progress: ProgressCallback = silent, allocate: Allocate = torch.empty
) -> CorpusData:
    """Load what the folds need to the device, once; ``allocate`` as in `load_data`.

    Raises:
        TrainingError: a split is not extracted yet; the message has the command.
    """
    ids = {name for fold in folds for name in (*fold.train, *fold.validation, *fold.test)}
    what = f"fold {folds[0].number} ({folds[0].name})" if len(folds) == 1 else f"these {len(folds)} folds"
    parts = job.parts(job.table[job.table["utterance_id"].isin(list(ids))])
    for part in parts:
        require_extracted(part.cache, job.roles.values(), part.own_ids, what)
    return load_data(parts, job.roles, job.classes, job.device, progress, allocate)


def model_settings(job: Job) -> ModelSettings | OwnSettings:
    """The model's settings, with the number of classes and the inputs' sizes that the cache has.

    For a model of the reader's own: the shapes of the features and the number of classes.
    """
    if job.own is not None:
        shapes = {name: job.cache.features[name].shape for name in job.roles.values()}
        return OwnSettings(shapes, len(job.classes.classes))
    found: dict[str, Any] = {"n_classes": len(job.classes.classes)}
    for role, name in job.roles.items():
        info = job.cache.features[name]
        layered = len(info.shape) == (2 if info.frames is None else 3)
        found |= {f"{role}_width": info.shape[-1], f"{role}_frames": info.frames}
        found |= {f"{role}_layers": info.shape[0] if layered else 1}
    found["statistics"] = sum(_statistics(job.cache.features[name]) for name in job.roles.values())
    # A setting of this name is no size elsewhere.
    decided = FROM_THE_CACHE | (FROM_THE_FIT if job.options.closed_form else set())
    known = decided & {field.name for field in fields(job.options.settings)}
    return replace(job.options.settings, **{key: value for key, value in found.items() if key in known})


def _statistics(info: FeatureInfo) -> int:
    """How many numbers an utterance's means and deviations are; the means alone where frames were pooled."""
    size = math.prod(info.shape)
    return size if info.frames is None else 2 * size // info.frames


def make_model(job: Job, settings: ModelSettings | OwnSettings) -> nn.Module:
    """The run's model as `model_settings` says, from torch's random state, on the run's device.

    Raises:
        TrainingError: a model of the reader's own that cannot be made, or weights that do not fit.
    """
    if isinstance(settings, OwnSettings):
        return build_own(job.own or find_model(job.options.model), settings).to(job.device)
    model = build_model(job.options.model, tuple(job.roles), settings)
    if job.alexnet is not None:
        for module in model.modules():
            if isinstance(module, AlexNet):
                load_weights(module, job.alexnet)
    model = model.to(job.device)
    return model.to(memory_format=torch.channels_last) if job.device == "cpu" else model  # type: ignore[call-overload]


def caveats(job: Job, fold: Fold) -> list[str]:
    """What must be said beside every score of this fold."""
    random = [name for name in job.roles.values() if job.cache.features[name].random_weights]
    lines = list(fold.caveats) + [f"{name} has random weights: its features mean nothing" for name in random]
    if job.alexnet is None and has_alexnet(job):
        lines.append("AlexNet from random weights; [13] starts from ImageNet's")
    return lines


def has_alexnet(job: Job) -> bool:
    """Whether the run's model looks at the spectrogram through AlexNet."""
    of_mfhca = getattr(job.options.settings, "spectrogram_network", None) == "alexnet"
    return not job.options.own and "spectrogram" in job.roles and (of_mfhca or job.options.model == "co-attention")
