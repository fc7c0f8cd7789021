"""A cache's clips as tensors on the device, in memory once for all folds where they fit, and batches of them.

Features stay as they are stored (float16) and become float32 a batch at a time. The spectrogram is standardised per
bin with statistics of the fold's training clips, valid frames only; padding frames are 0 after scaling.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mfhca_cache.errors import TrainingError
from mfhca_cache.labels import ClassMap, class_map
from mfhca_cache.models import INPUTS
from mfhca_cache.progress import Progress, ProgressCallback, silent
from mfhca_cache.storage.cache import Cache
from mfhca_cache.storage.command import adding_command, extract_command
from mfhca_cache.storage.dataset import frame_mask
from mfhca_cache.storage.layout import FeatureInfo
from mfhca_cache.training.mapped import MappedFeature, that_fit

#: As torch.empty: (shape, dtype=…) → a tensor on the CPU.
Allocate = Callable[..., Tensor]
_STATISTICS_CLIPS = 256
_LEAST_STD = 1e-3  # dB; a bin that never changes is left at 0


@dataclass(frozen=True)
class CorpusData:
    """Clips of a corpus on a device, N clips of U utterances.

    Attributes:
        inputs: role (spectrogram, mfcc, encoder) → (N, …) of the stored type, in memory where it fits. A model that
            takes any features has their names for roles.
        frames: role → (N,) int64, valid frames, for the inputs that have frames.
        labels: (N,) int64, class of each clip.
        owner: (N,) int64, each clip's utterance, 0 … U − 1.
        utterance_ids: (U,) in the order of ``owner``.
        utterance_labels: (U,) int64.
    """

    inputs: dict[str, Tensor | MappedFeature]
    frames: dict[str, Tensor]
    labels: Tensor
    owner: np.ndarray
    utterance_ids: np.ndarray
    utterance_labels: np.ndarray

    def clips_of(self, ids: Iterable[str]) -> Tensor:
        """Rows of the clips of the utterances, ascending, int64 on the device."""
        wanted = np.isin(self.utterance_ids, list(ids))
        return torch.from_numpy(np.flatnonzero(wanted[self.owner])).to(self.labels.device)


@dataclass(frozen=True)
class Scaling:
    """Per-bin standardisation of the spectrogram: mean and std in dB, float32 (bins,)."""

    mean: Tensor
    std: Tensor

    def apply(self, spectrogram: Tensor, frames: Tensor) -> Tensor:
        """(B, T, bins) in dB → float32, standardised, 0 from frame ``frames`` (B,) on."""
        scaled = (spectrogram.float() - self.mean) / self.std
        return scaled * frame_mask(frames, scaled.shape[1])[:, :, None]


@dataclass(frozen=True)
class Part:
    """Utterances of one cache.

    Attributes:
        utterances: rows of `labelled_utterances`; their ids are the run's.
        own_ids: their ids in the cache, in the same order.
    """

    cache: Cache
    utterances: pd.DataFrame
    own_ids: list[str]


def resolve_features(cache: Cache, features: str, model: str = "mfhca") -> dict[str, str]:
    """``spectrogram+encoder`` and the like → role → the name of a feature of the cache, in the order of the roles.

    Args:
        features: names of features, or roles for the one feature of the cache that can have it, joined by ``+``.
        model: whose roles (`mfhca_cache.models.INPUTS`). A model without roles, the reader's own among them, takes
            any features, each its own role, in the order given.

    Raises:
        TrainingError: an unknown name, the same role twice or one that the model needs and that is not named, a role
            that no feature of the cache has or several have, or a feature whose clips the model cannot take.
    """
    wanted = INPUTS.get(model, ())
    roles: dict[str, str] = {}
    for part in features.replace(",", "+").split("+"):
        name = part.strip()
        if name in ("encoder", *wanted) and name not in cache.features:
            name = _of_role(cache, name, model)
        if name not in cache.features:
            valid = ", ".join(
                dict.fromkeys(["+".join(wanted) or "spectrogram+encoder", *wanted, *sorted(cache.features)])
            )
            raise TrainingError(f"{cache.path} has no feature {name!r} (from --features {features}); expected {valid}")
        info = cache.features[name]
        if info.per != "clip":
            raise TrainingError(
                f"{cache.path}: {name} has features of utterances, any number of rows each, and training takes "
                "features of clips; read it with cache.dataset or cache.load"
            )
        role = _role(info, model)
        if wanted and role not in wanted:
            raise TrainingError(
                f"--features {features}: {name} is no input of {model}, which takes {' + '.join(wanted)}"
            )
        if role in roles:
            twice = f"two {role}s" if wanted else f"{name} twice"
            raise TrainingError(f"--features {features} names {twice}; expected at most one of each")
        if not _can_take(info, model):
            raise TrainingError(
                f"{cache.path}: a clip of {name} has shape {info.shape}, and {model} needs {_NEEDED[model][1]}; choose "
                "another feature, or train a model of your own on this one: --model my_module:MyModel"
            )
        roles[role] = name
    # MFHCA is whole with one of its inputs, too; the others are not.
    if model != "mfhca" and (missing := [role for role in wanted if role not in roles]):
        have = ", ".join(sorted(cache.features)) or "none yet"
        raise TrainingError(
            f"{model} needs {' + '.join(wanted)}; --features {features} names no {' and no '.join(missing)}. "
            f"{cache.path} has: {have}"
        )
    return {role: roles[role] for role in wanted if role in roles} if wanted else roles


#: Of models that need frames: how many axes a clip may have at most, and that in words.
_NEEDED = {
    "mfhca": (2, "(frames, width)"),
    "co-attention": (2, "(frames, width)"),
    "attentive-pooling": (3, "frames: (frames, width) or (layers, frames, width)"),
}


def _role(info: FeatureInfo, model: str) -> str:
    """What a feature is to a model."""
    wanted = INPUTS.get(model, ())
    if not wanted:
        return info.name
    return info.kind if info.kind in ("spectrogram", *wanted) else "encoder"


def _can_take(info: FeatureInfo, model: str) -> bool:
    """Whether a model can be made for clips of this shape."""
    return model not in _NEEDED or (info.frames is not None and len(info.shape) <= _NEEDED[model][0])


def _of_role(cache: Cache, role: str, model: str) -> str:
    """The one feature of the cache that can be this to the model.

    Raises:
        TrainingError: there is none, or several.
    """
    have = sorted(name for name, info in cache.features.items() if info.kind == role)
    # Other layers or means of an encoder in the cache leave no doubt about which one the model can take.
    have = [name for name in have if _can_take(cache.features[name], model)] or have
    if len(have) == 1:
        return have[0]
    one = "one encoder's features" if role == "encoder" else f"the feature {role}"
    if have:
        named = "+".join(have[0] if part == role else part for part in INPUTS.get(model) or (role,))
        found = f"several: {', '.join(have)}. Name one, such as {named}"
    else:
        adds = "mfhca extract" if role == "encoder" else adding_command(cache.path, cache.plan, role)
        found = f"none; `{adds}` adds {'one' if role == 'encoder' else 'it'}"
    raise TrainingError(f"{cache.path}: --features {role} needs {one}; it has {found}")


def labelled_utterances(cache: Cache, classes: str, features: Iterable[str]) -> tuple[pd.DataFrame, ClassMap]:
    """The cache's utterances that have a class and were not rejected, with a column ``class``, and the class map.

    Rows whose shards are not extracted yet are among them; see `require_extracted`.
    """
    chosen = class_map(classes, cache.corpus, cache.utterances["label"])
    return with_classes(cache, chosen, features), chosen


def with_classes(cache: Cache, classes: ClassMap, features: Iterable[str]) -> pd.DataFrame:
    """The table of `labelled_utterances` by a class map that is at hand."""
    table = cache.utterances
    table["class"] = classes.apply(table["label"])
    rejected = cache.rejected(features)
    return table[table["class"].notna() & ~table["utterance_id"].isin(list(rejected))]


def require_extracted(cache: Cache, features: Iterable[str], ids: Iterable[str], what: str) -> None:
    """Check that every utterance's shards are there.

    Raises:
        TrainingError: the splits that are missing, and the command that makes them.
    """
    table = cache.plan.utterances
    needed = set(table.loc[table["utterance_id"].isin(list(ids)), "split"])
    lines = []
    for name in features:
        missing = [split for split in cache.missing(name) if split in needed]
        if missing:
            info = cache.features[name]
            commands = "\n    ".join(extract_command(cache.path, cache.plan, info, split) for split in missing)
            lines.append(f"{name} of {', '.join(missing)} is not extracted yet; run\n    {commands}")
    if lines:
        raise TrainingError(f"{what}: " + "\n".join(lines))


def load_data(
    parts: Sequence[Part],
    roles: dict[str, str],
    classes: ClassMap,
    device: str,
    progress: ProgressCallback = silent,
    allocate: Allocate = torch.empty,
) -> CorpusData:
    """Load the clips of utterances to the device; what does not fit is read as it is needed.

    Args:
        parts: of one cache, or of several that have the same features; their clips lie one part behind the other.
        roles: from `resolve_features`.
        allocate: makes the tensors that the clips are read into.
    """
    tables = [part.cache.clip_table(list(roles.values()), part.own_ids) for part in parts]
    rows = [(part.cache, table["plan_row"].to_numpy()) for part, table in zip(parts, tables, strict=True)]
    clips, features = sum(map(len, tables)), parts[0].cache.features
    sizes = {name: clips * features[name].clip_bytes for name in roles.values()}
    resident = that_fit(sizes, device)
    inputs: dict[str, Tensor | MappedFeature] = {}
    frames: dict[str, Tensor] = {}
    for role, name in roles.items():
        info, memory = features[name], None
        if name in resident:
            memory = allocate((clips, *info.shape), dtype=getattr(torch, info.dtype))
        else:
            detail = f"{sizes[name] / 1e9:.1f} GB do not fit in memory and are read batch by batch"
            progress(Progress(f"loading {name}", clips, clips, "clips", detail=detail))
        valid, at = [], 0
        for cache, wanted in rows:
            out = None if memory is None else memory[at : at + len(wanted)].numpy()
            valid.append(cache.copy_clips(name, wanted, out, progress))
            at += len(wanted)
        inputs[role] = MappedFeature(rows, name, device) if memory is None else memory.to(device)
        if info.frames is not None:
            frames[role] = torch.from_numpy(np.concatenate(valid).astype(np.int64)).to(device)
    owners, at = [], 0
    for part, table in zip(parts, tables, strict=True):
        owners.append(at + pd.Index(part.own_ids).get_indexer(pd.Index(table["utterance_id"])))
        at += len(part.own_ids)
    owner, utterances = np.concatenate(owners), pd.concat([part.utterances for part in parts])
    labels = np.array([classes.classes.index(name) for name in utterances["class"]], dtype=np.int64)
    return CorpusData(
        inputs,
        frames,
        torch.from_numpy(labels[owner]).to(device),
        owner,
        utterances["utterance_id"].to_numpy(str),
        labels,
    )


def fit_scaling(data: CorpusData, clips: Tensor) -> Scaling | None:
    """Statistics of the valid frames of the clips, in float64; None where there is no spectrogram."""
    if "spectrogram" not in data.inputs:
        return None
    frames = data.frames["spectrogram"]
    total = squares = torch.zeros(data.inputs["spectrogram"].shape[2], dtype=torch.float64, device=data.labels.device)
    count = int(frames[clips].sum())
    for part in clips.split(_STATISTICS_CLIPS):
        values = data.inputs["spectrogram"][part].double()
        values = values * frame_mask(frames[part], values.shape[1])[:, :, None]
        total, squares = total + values.sum((0, 1)), squares + values.square().sum((0, 1))
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=0).sqrt().clamp(min=_LEAST_STD)
    return Scaling(mean.float(), std.float())


def gather(data: CorpusData, clips: Tensor, scaling: Scaling | None) -> dict[str, Tensor]:
    """A batch as the model takes it: role → float32 (B, …)."""
    batch = {role: values[clips] for role, values in data.inputs.items()}
    if scaling is not None:
        batch["spectrogram"] = scaling.apply(batch["spectrogram"], data.frames["spectrogram"][clips])
    return {role: values.float() for role, values in batch.items()}


def masks(data: CorpusData, clips: Tensor) -> dict[str, Tensor]:
    """Which frames of a batch are signal: role → bool (B, frames), for the inputs that have frames."""
    return {role: frame_mask(valid[clips], data.inputs[role].shape[-2]) for role, valid in data.frames.items()}
