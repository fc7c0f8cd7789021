"""A fold's record: what was trained on what, how it was tested, and with which versions."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Any

import numpy as np
import pandas as pd
import torch

from mfhca_cache.folds import Fold
from mfhca_cache.models.own import OwnSettings
from mfhca_cache.models.settings import ModelSettings
from mfhca_cache.spec import settings as plain
from mfhca_cache.training.data import CorpusData
from mfhca_cache.training.encoders import describe_encoder
from mfhca_cache.training.job import Job, caveats
from mfhca_cache.training.metrics import by_utterance, confusion, score

RESULT_FORMAT = 1
#: What a report needs of every fold.
REQUIRED_KEYS = (
    "fold", "name", "corpus", "model", "features", "protocol", "preset", "seed", "parameters", "classes", "class_map",
    "caveats", "scores", "confusion", "best_epoch", "epochs", "seconds",
)  # fmt: skip


def fold_record(job: Job, fold: Fold, model: ModelSettings | OwnSettings, parameters: int) -> dict[str, Any]:
    """What is known of a fold before it is trained, as JSON."""
    features = [job.cache.features[name] for name in job.roles.values()]
    caches = [job.cache] if job.test_cache is None else [job.cache, job.test_cache]
    tested = {"test_corpus": other.corpus, "test_plan": other.plan.identity()} if (other := job.test_cache) else {}
    return {
        "format": RESULT_FORMAT,
        "corpus": job.cache.corpus,
        **tested,
        "fold": fold.number,
        "name": fold.name,
        "protocol": fold.protocol,
        "optimistic": fold.optimistic,
        "caveats": caveats(job, fold),
        "folds_from": job.folds_from,
        "test_speakers": job.own_names(fold.test_speakers),
        "validation_speakers": job.own_names(fold.validation_speakers),
        "utterances": {"train": len(fold.train), "validation": len(fold.validation), "test": len(fold.test)},
        "overlaps": fold.overlaps,
        "rejected": sum(len(cache.rejected(job.roles.values())) for cache in caches),
        "model": job.options.model,
        "model_source": {"file": str(job.own.file), "sha256": job.own.sha256} if job.own else None,
        "alexnet": {"file": str(job.alexnet.file), "sha256": job.alexnet.sha256} if job.alexnet else None,
        "inputs": list(job.roles),
        "features": dict(job.roles),
        "encoders": {info.name: describe_encoder(info) for info in features if info.kind == "encoder"},
        "random_weights": any(info.random_weights for info in features),
        "classes": list(job.classes.classes),
        "class_map": job.classes.name,
        "seed": job.options.seed,
        "preset": job.options.preset,
        "recipe": {} if job.options.closed_form else plain(job.options.recipe),
        "model_settings": plain(model),
        "parameters": parameters,
        "cache": {"plan": job.cache.plan.identity(), **{info.name: info.fingerprint for info in features}},
        "versions": _versions(),
        "device": torch.cuda.get_device_name(job.device) if job.device.startswith("cuda") else "cpu",
        "precision": job.options.precision,
        "threads": job.threads,
    }


def test_scores(
    data: CorpusData,
    clips: np.ndarray,
    log_probabilities: np.ndarray,
    classes: int,
    of_utterances: np.ndarray | None = None,
) -> dict[str, Any]:
    """WA, UA and confusion matrix at both levels.

    Args:
        clips: (N,) rows of the data.
        log_probabilities: (N, classes).
        of_utterances: (U, classes) in the order of the data's utterances, where they are not the clips' mean.
    """
    utterances, _, mean = by_utterance(log_probabilities, data.owner[clips])
    mean = mean if of_utterances is None else of_utterances
    levels = {
        "utterance": (data.utterance_labels[utterances], mean.argmax(1)),
        "clip": (data.labels.cpu().numpy()[clips], log_probabilities.argmax(1)),
    }
    return {
        "scores": {level: plain(score(*pair)) for level, pair in levels.items()},
        "confusion": {level: confusion(*pair, classes).tolist() for level, pair in levels.items()},
    }


def predictions(
    job: Job,
    fold: Fold,
    data: CorpusData,
    clips: np.ndarray,
    log_probabilities: np.ndarray,
    of_utterances: np.ndarray | None = None,
) -> pd.DataFrame:
    """A row a test utterance: utterance_id, speaker, clips, label, prediction, and ``p_<class>``.

    The probabilities are the normalised geometric mean over the utterance's clips, or those of the utterance itself
    where they are given; arguments as of `test_scores`.
    """
    names = np.array(job.classes.classes)
    utterances, counts, mean = by_utterance(log_probabilities, data.owner[clips])
    mean = mean if of_utterances is None else of_utterances
    probabilities = np.exp(mean - np.logaddexp.reduce(mean, axis=1, keepdims=True))
    ids = data.utterance_ids[utterances]
    table = pd.DataFrame(
        {
            "utterance_id": job.own_names(ids),
            "speaker": job.own_names(job.table.set_index("utterance_id").loc[list(ids), "speaker"]),
            "clips": counts,
            "label": names[data.utterance_labels[utterances]],
            "prediction": names[mean.argmax(1)],
        }
    )
    if fold.optimistic:
        table = table.assign(caveat="; ".join(fold.warnings))
    return table.assign(**{f"p_{name}": probabilities[:, at].round(6) for at, name in enumerate(names)})


def _versions() -> dict[str, str]:
    names = ("mfhca-cache", "torch", "numpy", "scikit-learn")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in names}}
