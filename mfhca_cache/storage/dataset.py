"""A cache as a torch Dataset: items read when they are asked for, in any process, and batches padded with masks.

    dataset = cache.dataset(["spectrogram", "hubert-base-ls960"], where="speaker != '1F'")
    loader = DataLoader(dataset, batch_size=32, shuffle=True, collate_fn=dataset.collate)

Nothing open is pickled: each worker process, forked or spawned, opens the shards that it reads, and checks a clip's
digest when it first reads it. What fits in memory is read faster by `Cache.load`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from mfhca_cache.errors import CacheError
from mfhca_cache.storage.select import Where

if TYPE_CHECKING:
    from mfhca_cache.storage.cache import Cache

#: What an item holds beside its features.
ITEM_KEYS = ("utterance_id", "clip", "clips", "label")


def frame_mask(valid: Tensor, frames: int) -> Tensor:
    """True for the first ``valid`` of so many frames: whole numbers (…) → bool (…, frames)."""
    return torch.arange(frames, device=valid.device) < valid[..., None]


def _stack(values: Sequence[Tensor]) -> Tensor:
    """`torch.stack`, without a copy where the tensors lie one behind the other, as the items of one batch do."""
    first, size = values[0], values[0].numel()
    storage, offset = first.untyped_storage().data_ptr(), first.storage_offset()
    for number, value in enumerate(values):
        there = value.untyped_storage().data_ptr() == storage and value.storage_offset() == offset + number * size
        if not there or value.shape != first.shape or not value.is_contiguous():
            return torch.stack(list(values))
    return first.as_strided((len(values), *first.shape), (size, *first.stride()))


class CacheDataset(Dataset[dict[str, Any]]):
    """Clips, or utterances with all their clips; made by `Cache.dataset`.

    An item is a dict. By clip:

        <feature>         tensor, as stored: (300, 200) float16
        valid_<feature>   int, frames of it that come from signal and not from padding
        utterance_id      str
        clip              int, 0, 1, … within the utterance
        label             str, the raw label of the manifest

    By utterance there is ``clips``, their number, in place of ``clip``; the features are (clips, …), and
    ``valid_<feature>`` is int64 (clips,). Either way a feature of utterances (text) is (rows, width), and its
    ``valid_<feature>`` the number of rows.

    Attributes:
        cache: where it reads.
        features: names.
        by: ``clip`` or ``utterance``.
        utterances: the rows of `Cache.utterances` that were chosen, in the order of the items.
        clips: a row a clip: utterance_id, clip, valid_samples at 16 kHz.

    Raises:
        CacheError: see `Cache.dataset`; and, when an item is read, damaged bytes.
    """

    def __init__(
        self,
        cache: Cache,
        features: str | Sequence[str],
        where: Where = None,
        by: Literal["clip", "utterance"] = "clip",
    ) -> None:
        if by not in ("clip", "utterance"):
            raise CacheError(f"by: got {by!r}; expected 'clip' or 'utterance'")
        self.cache = cache
        self.by = by
        self.features = (features,) if isinstance(features, str) else tuple(features)
        if not self.features:
            raise CacheError(f"{cache.path}: no feature was named; this cache has: {', '.join(sorted(cache.features))}")
        if taken := sorted({*ITEM_KEYS, "mask"} & set(self.features)):
            raise CacheError(f"{cache.path}: an item has a {taken[0]!r} of its own; rename the feature's folder")
        ids = cache.select(where, self.features)
        clips = cache.clip_table(self.features, ids)
        self._plan_row = clips.pop("plan_row").to_numpy()
        self.clips = clips
        table = cache.utterances
        self._utterance_row = pd.Index(table["utterance_id"]).get_indexer(pd.Index(ids, dtype=object))
        self.utterances = table.iloc[self._utterance_row].reset_index(drop=True)
        self._ids, self._labels = list(self.utterances["utterance_id"]), list(self.utterances["label"])
        self._clip, self._clips = self.clips["clip"].to_numpy(), self.utterances["clips"].to_numpy()
        self._stop = self._clips.cumsum()

    def __len__(self) -> int:
        return len(self.clips) if self.by == "clip" else len(self.utterances)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """The items of a batch, read together: torch's DataLoader asks for them so."""
        places = np.array([self._place(int(index)) for index in indices], dtype=np.int64)
        if self.by == "clip":
            owner, rows, sizes = np.searchsorted(self._stop, places, side="right"), places, None
        else:
            owner = places
            sizes = self._clips[places]
            rows = np.concatenate([np.arange(s - n, s) for s, n in zip(self._stop[places], sizes, strict=True)])
        items: list[dict[str, Any]] = [{"utterance_id": self._ids[at], "label": self._labels[at]} for at in owner]
        numbers = self._clip[rows] if sizes is None else sizes
        for item, number in zip(items, numbers.tolist(), strict=True):
            item["clip" if sizes is None else "clips"] = number
        for name in self.features:
            if self.cache.feature(name).per == "utterance":
                texts = self.cache.copy_utterances(name, self._utterance_row[owner])
                for item, text in zip(items, texts, strict=True):
                    item[name], item[f"valid_{name}"] = text, len(text)
                continue
            values, valid = self._read(name, rows)
            parts = values if sizes is None else values.split(sizes.tolist())
            valids = valid.tolist() if sizes is None else valid.split(sizes.tolist())
            for item, part, count in zip(items, parts, valids, strict=True):
                item[name], item[f"valid_{name}"] = part, count
        return items

    def collate(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Items → a batch of B, for the DataLoader's ``collate_fn``.

        By clip every item's value is stacked, and ``mask_<feature>`` is bool (B, frames): True where a frame is
        signal. By utterance, padded with zeros to the batch's longest utterance:

            <feature>         (B, clips, …)
            valid_<feature>   int64 (B, clips), 0 for padding
            mask              bool (B, clips): True where there is a clip
            mask_<feature>    bool (B, clips, frames): True where a frame is signal

        Strings come as lists. A feature without frames, such as a mean over time, has no ``mask_<feature>``. A feature
        of utterances (text) is padded to the batch's longest, (B, rows, width), and its mask is (B, rows).
        """
        batch: dict[str, Any] = {key: [item[key] for item in items] for key in ("utterance_id", "label")}
        if self.by == "clip":
            batch["clip"] = torch.tensor([item["clip"] for item in items])
        else:
            counts = torch.tensor([item["clips"] for item in items])
            batch["mask"] = frame_mask(counts, int(counts.max()))
        for name in self.features:
            info = self.cache.feature(name)
            values, valid = [item[name] for item in items], [item[f"valid_{name}"] for item in items]
            frames = info.frames
            if info.per == "utterance":
                batch[name], batch[f"valid_{name}"] = pad_sequence(values, batch_first=True), torch.tensor(valid)
                frames = batch[name].shape[1]
            elif self.by == "clip":
                batch[name], batch[f"valid_{name}"] = _stack(values), torch.tensor(valid)
            else:
                batch[name] = pad_sequence(values, batch_first=True)
                batch[f"valid_{name}"] = pad_sequence(valid, batch_first=True)
            if frames is not None:
                batch[f"mask_{name}"] = frame_mask(batch[f"valid_{name}"], frames)
        return batch

    def _place(self, index: int) -> int:
        size = len(self)
        if not -size <= index < size:
            raise IndexError(f"item {index} of {size}")
        return index % size

    def _read(self, name: str, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Clips, rows of ``self.clips``: (N, …) as stored, and valid frames int64 (N,)."""
        info = self.cache.feature(name)
        values = torch.empty((len(rows), *info.shape), dtype=getattr(torch, info.dtype))
        valid = self.cache.copy_clips(name, self._plan_row[rows], values.numpy())
        return values, torch.from_numpy(valid.astype(np.int64))
