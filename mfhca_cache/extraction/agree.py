"""Whether what is asked for now is what a cache was begun with. Anything else is refused, with what differs."""

from __future__ import annotations

from pathlib import Path

import torch

from mfhca_cache.device import resolve_device
from mfhca_cache.errors import CacheError, CacheMismatchError, ManifestError
from mfhca_cache.extraction.work import begun_feature
from mfhca_cache.manifest import Manifest, select_rows
from mfhca_cache.spec import ExtractSpec, differences, settings
from mfhca_cache.storage.layout import (
    IDENTITY,
    FeatureInfo,
    Plan,
    make_plan,
    read_plan,
    write_feature,
    write_plan,
    write_utterances,
)
from mfhca_cache.storage.publish import lock


def corpus_root(manifest: Manifest) -> Path:
    """The corpus folder, which must be known and there.

    Raises:
        ManifestError: it is not.
    """
    if manifest.root is None:
        raise ManifestError("the manifest does not say where the corpus lies; name the folder with --root DIR")
    if not manifest.root.is_dir():
        raise ManifestError(f"the corpus folder {manifest.root} is not there; if it has moved, say --root DIR")
    return manifest.root


def agreed_plan(folder: Path, manifest: Manifest, spec: ExtractSpec) -> tuple[Plan, list[str]]:
    """The cache's plan, made from the manifest where there is none yet, and notes for a person.

    Raises:
        ManifestError: no rows to extract, or the corpus is not there.
        CacheMismatchError: the cache was planned for other clips, rows or audio.
    """
    rows = select_rows(manifest.utterances, spec.rows, manifest.corpus)
    if rows.empty:
        raise ManifestError(f"the manifest of {manifest.corpus} has no utterance of the four classes; try --rows all")
    wanted = make_plan(manifest.corpus, rows, spec.clip, spec.rows)
    # Reading needs no lock, so that a complete cache on a read-only disk can be asked for what it lacks.
    if (folder / "cache.json").exists():
        return _checked_plan(folder, wanted)
    corpus_root(manifest)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CacheError(f"{folder}: could not be made ({error.strerror})") from error
    with lock(folder, "plan"):
        if (folder / "cache.json").exists():
            return _checked_plan(folder, wanted)
        write_plan(folder, wanted)
    return wanted, []


def agreed_feature(folder: Path, wanted: FeatureInfo) -> FeatureInfo:
    """The feature as it was begun, after checking that it is what is wanted now; or the wanted one if it is new.

    Raises:
        CacheMismatchError: other settings or weights.
    """
    begun = begun_feature(folder, wanted.name)
    if begun is None:
        return wanted
    changed = differences(begun.settings, wanted.settings)
    if changed:
        weights = any(line.startswith("weights_sha256") for line in changed)
        raise CacheMismatchError(
            f"{folder / wanted.name} was begun with other {'weights' if weights else 'settings'}, and shards of two "
            "kinds are never mixed.\n  "
            + "\n  ".join(changed)
            + "\nUse the old ones, or begin another cache with --cache DIR."
        )
    return begun


def begin_feature(folder: Path, wanted: FeatureInfo) -> FeatureInfo:
    """Write a new feature's feature.json, and make its folder; one that another run has begun meanwhile is agreed with.

    Raises:
        CacheMismatchError: that other run has other settings or weights.
    """
    with lock(folder, f"{wanted.name}.feature"):
        if begun_feature(folder, wanted.name) is None:
            write_feature(folder, wanted)
    return agreed_feature(folder, wanted)


def agreed_device(folder: Path, feature: str, device: str) -> str:
    """Where a feature is computed: where it was begun, or ``device`` if it is new.

    Raises:
        CacheMismatchError: it was begun on another kind of device, or on one that is not here.
    """
    begun = begun_feature(folder, feature)
    if begun is None:
        return resolve_device(device)
    kind = str(begun.engine["device"])
    asked = kind if device == "auto" else resolve_device(device).split(":")[0]
    if asked == kind and (kind != "cuda" or torch.cuda.is_available()):
        return kind
    raise CacheMismatchError(
        f"{folder / feature} was begun on {kind}, and goes on there so that its numbers stay of one kind; got "
        f"{device if device != 'auto' else 'a computer without it'}. "
        f"Go on with --device {kind}, or begin another cache with --cache DIR."
    )


def _checked_plan(folder: Path, wanted: Plan) -> tuple[Plan, list[str]]:
    have = read_plan(folder)
    before = {"corpus": have.corpus, "clip": settings(have.clip), "rows": have.rows}
    changed = differences(before, {"corpus": wanted.corpus, "clip": settings(wanted.clip), "rows": wanted.rows})
    if not changed and have.identity() != wanted.identity():
        changed = _changed_utterances(have, wanted)
    if changed:
        raise CacheMismatchError(
            f"{folder} was begun with other settings or audio; nothing was changed.\n  "
            + "\n  ".join(changed)
            + "\nUse the old ones, or begin another cache with --cache DIR."
        )
    if have.utterances.equals(wanted.utterances):
        return have, []
    with lock(folder, "plan"):
        write_utterances(folder, wanted)
    return wanted, ["labels or other descriptions have changed in the manifest; the cache now has the new ones"]


def _changed_utterances(have: Plan, wanted: Plan) -> list[str]:
    """What differs between two lists of utterances, with the first few ids of each kind."""
    before = have.utterances.set_index("utterance_id", drop=False)
    now = wanted.utterances.set_index("utterance_id", drop=False)
    both = before.index.intersection(now.index)
    found = [
        ("no longer in the manifest", before.index.difference(now.index)),
        ("new in the manifest", now.index.difference(before.index)),
    ]
    for column in IDENTITY[1:]:
        word = "other audio bytes (sha256)" if column == "sha256" else f"another {column}"
        found.append((f"of {word}", both[(before.loc[both, column] != now.loc[both, column]).to_numpy()]))
    return [
        f"{len(ids)} utterance(s) {words}: {', '.join(ids[:3])}{' …' if len(ids) > 3 else ''}"
        for words, ids in found
        if len(ids)
    ]
