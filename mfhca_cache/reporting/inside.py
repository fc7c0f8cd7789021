"""What trained models make of a cache's clips: their final features, what they had before HCA, and HCA's attention.

Each fold's clips go through that fold's own model, in eval mode and on the CPU, so that the numbers are those of the
predictions that are stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from mfhca_cache.errors import MfhcaError, TrainingError
from mfhca_cache.labels import ClassMap
from mfhca_cache.models.mfhca import HCA, MFHCA, as_image
from mfhca_cache.models.resize import adaptive_average
from mfhca_cache.progress import Progress, ProgressCallback, silent
from mfhca_cache.storage.cache import Cache
from mfhca_cache.storage.descriptions import read_plan
from mfhca_cache.training.data import CorpusData, Part, Scaling, gather, load_data, masks
from mfhca_cache.training.result import FoldResult

_CLIPS = 64  # of a batch
_MASKED = ("linear-probe", "attentive-pooling")
_UTTERANCES = 128  # loaded at a time: an IEMOCAP whole is gigabytes


@dataclass(frozen=True)
class Features:
    """What a model makes of utterances: the means over each utterance's clips.

    Attributes:
        ids: (U,) utterance ids.
        final: float32 (U, width), what the classifier sees.
        before: float32 (U, …), f_spec beside the encoder's features as Eq. 10 pools them; None for a model without HCA.
    """

    ids: list[str]
    final: np.ndarray
    before: np.ndarray | None


@dataclass(frozen=True)
class Attention:
    """HCA's attention over an utterance.

    Attributes:
        weights: float32 (clips, L), ``w`` of Eq. 9: 0 or more, of no fixed sum.
        spectrogram: float32 (clips, T, bins) in dB, as the cache has it.
        valid: (clips,) frames of the spectrogram that are signal; the rest is padding.
        seconds: of a clip.
    """

    utterance_id: str
    weights: np.ndarray
    spectrogram: np.ndarray
    valid: np.ndarray
    seconds: float


def why_not(cache: Cache, record: dict[str, Any]) -> str | None:
    """Why a fold's model cannot look at this cache for its test utterances, in words; None where it can."""
    stated = dict(record["cache"])
    plan, tested = stated.pop("plan", None), record.get("test_plan")
    if (tested or plan) != cache.plan.identity():
        done = "tested" if tested else "trained"
        return f"{cache.path} has other clips than the run was {done} on (the fingerprints of their plans differ)"
    for name, fingerprint in stated.items():
        if name not in cache.features:
            return f"{cache.path} has no {name}"
        if cache.features[name].fingerprint != fingerprint:
            return f"{name} in {cache.path} is not what the run was trained on (the fingerprints differ)"
    return None


def has_features(record: dict[str, Any]) -> str | None:
    """Why a fold's model gives no final features, in words; None where it does."""
    if record.get("model_source"):
        return "the model is the reader's own, and a result holds its weights and not its code"
    if record.get("step") == "closed form":
        return "the model classifies statistics of its inputs as they are, and learns no features of its own"
    return None


def features_of(
    cache: Cache, result: FoldResult, ids: Sequence[str], progress: ProgressCallback = silent, stage: str = "features"
) -> Features:
    """Final features of utterances from a fold's model.

    Args:
        ids: utterances that the cache holds.
        progress: called with utterances done.

    Raises:
        TrainingError: a model that gives no features, or that cannot be rebuilt.
        CacheError: an utterance that the cache does not hold, or damaged bytes.
    """
    model = _model(result)
    found: list[str] = []
    final: list[np.ndarray] = []
    before: list[np.ndarray] = []
    for data, batches in _clips(cache, result, ids, progress, stage):
        parts = [_forward(model, batch) for batch in batches]
        final.append(_by_utterance(torch.cat([part[0] for part in parts]), data.owner))
        if parts[0][1] is not None:
            before.append(_by_utterance(torch.cat([part[1] for part in parts if part[1] is not None]), data.owner))
        found += data.utterance_ids.tolist()
    return Features(found, np.concatenate(final), np.concatenate(before) if before else None)


def attention_of(cache: Cache, result: FoldResult, utterance_id: str) -> Attention | None:
    """HCA's attention over an utterance from a fold's model; None for a model without HCA.

    Raises:
        TrainingError, CacheError: as `features_of` does.
    """
    model = _model(result)
    if not _has_hca(model):
        return None
    for data, batches in _clips(cache, result, [utterance_id], silent, ""):
        with torch.no_grad():
            weights = torch.cat([model.hca.over_time(_f_spec(model, batch)) for batch in batches])
        valid = data.frames["spectrogram"]
        picture = data.inputs["spectrogram"][torch.arange(len(valid))].float()
        return Attention(utterance_id, weights.numpy(), picture.numpy(), valid.numpy(), cache.clip.seconds)
    raise TrainingError(f"{utterance_id}: no clips of it in {cache.path}")


def find_cache(run: Path, identity: dict[str, Any], folders: Sequence[Path] = (Path("cache"),)) -> Path | None:
    """The cache with the utterances that a run tests, by corpus and plan; None where there is none.

    It is the cache that the run was trained from, but for a run that was tested on another corpus, of which it is.

    Args:
        run: the run's folder; a cache beside the folder of runs is found too.
        identity: the run's run.json.
        folders: where to look: each may be a cache, or hold caches.
    """
    part = "test_" if identity.get("test_plan") else ""
    for folder in [*folders, run.resolve().parent.parent / "cache"]:
        for path in [folder / "cache.json", *sorted(folder.glob("*/cache.json"))]:
            try:
                plan = read_plan(path.parent)
            except MfhcaError:
                continue
            if plan.corpus == identity.get(f"{part}corpus") and plan.identity() == identity.get(f"{part}plan"):
                return path.parent
    return None


def _model(result: FoldResult) -> Any:
    model = result.model()
    if not callable(getattr(model, "features", None)):
        raise TrainingError(f"the model {result.record['model']} gives no features")
    layout: Any = {"memory_format": torch.channels_last}
    return model.to(**layout)  # As in training: its convolutions are faster so.


def _has_hca(model: nn.Module) -> bool:
    return isinstance(model, MFHCA) and isinstance(getattr(model, "hca", None), HCA)


def _clips(
    cache: Cache, result: FoldResult, ids: Sequence[str], progress: ProgressCallback, stage: str
) -> Iterator[tuple[CorpusData, Iterator[dict[str, Tensor]]]]:
    """Utterances by and by, with their clips in batches as the model takes them."""
    record, state = result.record, result.state
    scaling = Scaling(state["scaling.mean"], state["scaling.std"]) if "scaling.mean" in state else None
    # Nobody asks for labels here; every utterance has the first class.
    classes = ClassMap("any", tuple(record["classes"]), {})
    for first in range(0, len(ids), _UTTERANCES):
        part = list(ids[first : first + _UTTERANCES])
        table = pd.DataFrame({"utterance_id": part, "class": record["classes"][0]})
        data = load_data([Part(cache, table, part)], record["features"], classes, "cpu")
        rows = torch.arange(len(data.owner)).split(_CLIPS)
        yield data, (gather(data, clips, scaling) | _mask(record, data, clips) for clips in rows)
        progress(Progress(stage, first + len(part), len(ids), "utterances"))


def _mask(record: dict[str, Any], data: CorpusData, clips: Tensor) -> dict[str, Tensor]:
    """Which frames are signal, for the models whose ``features`` asks for it."""
    found = masks(data, clips) if record["model"] in _MASKED else {}
    return {"mask": found["encoder"]} if "encoder" in found else {}


def _forward(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
    """A batch's final features, and what HCA was given: f_spec and the encoder's features as Eq. 10 pools them."""
    with torch.no_grad():
        if not _has_hca(model):
            final: Tensor = model.features(**batch)
            return final.flatten(1).float(), None
        f_spec = _f_spec(model, batch)
        rows = model.settings.attention_grid
        pooled = adaptive_average(batch["encoder"], (rows, model.settings.encoder_width // rows))
        return model.hca(f_spec, batch["encoder"]).float(), torch.cat([f_spec, pooled.flatten(1)], 1).float()


def _f_spec(model: Any, batch: dict[str, Tensor]) -> Tensor:
    result: Tensor = model.mf(as_image(batch["spectrogram"], model.settings.in_channels))
    return result


def _by_utterance(clips: Tensor, owner: np.ndarray) -> np.ndarray:
    """Means over each utterance's clips: (clips, width), (clips,) → (utterances, width)."""
    total = np.zeros((int(owner.max()) + 1, clips.shape[1]))
    np.add.at(total, owner, clips.double().numpy())
    return np.asarray(total / np.bincount(owner)[:, None], dtype=np.float32)
