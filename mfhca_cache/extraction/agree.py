"""Whether what is asked for now is what a cache was begun with. Anything else is refused, with what differs."""

from __future__ import annotations

from pathlib import Path

import torch

from mfhca_cache.device import resolve_device
from mfhca_cache.errors import CacheError, CacheMismatchError, EncoderError, LabelError, ManifestError
from mfhca_cache.extraction.features import begun_feature
from mfhca_cache.extraction.runtimes import check_runtime
from mfhca_cache.manifest import Manifest, select_rows
from mfhca_cache.spec import EncoderSpec, ExtractSpec, differences
from mfhca_cache.storage.descriptions import (
    is_plan_of,
    read_feature,
    read_plan,
    remove_plan_leftovers,
    write_feature,
    write_plan,
    write_utterances,
)
from mfhca_cache.storage.layout import FeatureInfo, Plan, make_plan, plan_differences
from mfhca_cache.storage.publish import lock, make_folder, remove_temporaries


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


def wanted_plan(manifest: Manifest, spec: ExtractSpec) -> Plan:
    """The plan of a manifest's rows.

    Raises:
        ManifestError: none of them is to be extracted.
    """
    try:
        rows = select_rows(manifest.utterances, spec.rows, manifest.corpus)
    except LabelError as error:
        raise ManifestError(
            f"no utterance of the manifest belongs to the four classes; use --rows all ({error})"
        ) from None
    return make_plan(manifest.corpus, rows, spec.clip, spec.rows)


def check_plan(folder: Path, wanted: Plan) -> None:
    """Check that a cache, if it is begun, was planned for the same clips, rows and audio. Nothing is changed.

    Raises:
        CacheMismatchError: it was not; what differs is listed.
    """
    if not any(folder.glob("*/feature.json")):
        return
    try:
        have = read_plan(folder)
    except CacheError:
        if is_plan_of(folder, wanted):
            return  # utterances.csv alone is damaged, and the manifest says what it held.
        raise
    changed = plan_differences(have, wanted)
    if changed:
        raise CacheMismatchError(
            f"{folder} was begun with other settings or audio; nothing was changed.\n  "
            + "\n  ".join(changed)
            + "\nUse the old ones, or begin another cache with --cache DIR."
        )


def keep_plan(folder: Path, wanted: Plan) -> list[str]:
    """Write the plan of a cache that has none, or its rows where labels and the like were corrected; notes on that.

    Raises:
        CacheMismatchError: another run has begun the cache otherwise meanwhile.
        CacheError: the folder cannot be made or written.
    """
    have = _written_plan(folder)
    if have is not None and have.utterances.equals(wanted.utterances):
        if any(folder.glob(".*.tmp")):
            with lock(folder, "plan"):
                remove_plan_leftovers(folder)
        return []
    make_folder(folder)
    with lock(folder, "plan"):
        remove_plan_leftovers(folder)
        check_plan(folder, wanted)
        if any(folder.glob("*/feature.json")):
            write_utterances(folder, wanted)
            if have is None:
                return ["utterances.csv in the cache was damaged; it was written anew from the manifest"]
            notes = ["labels or other descriptions have changed in the manifest; the cache now has the new ones"]
            if not have.utterances["text"].equals(wanted.utterances["text"]):
                notes += _stale_texts(folder)
            return notes
        write_plan(folder, wanted)
    return []


def _stale_texts(folder: Path) -> list[str]:
    """What to do about features of transcripts that were corrected."""
    names = [path.parent.name for path in sorted(folder.glob("*/feature.json"))]
    texts = [info for info in (read_feature(folder, name) for name in names) if info.kind == "text"]
    return [
        f"transcripts have changed: {info.name} is read again once "
        f"`mfhca extract --text-encoder {info.source.get('name')}` has made what is out of date anew"
        for info in texts
    ]


def _written_plan(folder: Path) -> Plan | None:
    """The plan that lies in a folder; None where there is none yet, or only a damaged one."""
    try:
        return read_plan(folder)
    except CacheError:
        return None


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
        CacheMismatchError: that other run has other settings, weights or another device.
    """
    with lock(folder, f"{wanted.name}.feature"):
        remove_temporaries(folder / wanted.name, "feature.json")
        if begun_feature(folder, wanted.name) is None:
            write_feature(folder, wanted)
    begun = agreed_feature(folder, wanted)
    agreed_device(folder, wanted.name, str(wanted.engine["device"]))
    return begun


def agreed_device(folder: Path, feature: str, device: str) -> str:
    """Where a feature is computed: where it was begun, or ``device`` if it is new.

    Raises:
        CacheMismatchError: it was begun on another device, or on one that is not here.
    """
    begun = begun_feature(folder, feature)
    if begun is None:
        return resolve_device(device)
    there = str(begun.engine["device"])
    here = there if device == "auto" else resolve_device(device)
    if here == there and (there != "cuda" or torch.cuda.is_available()):
        return there
    raise CacheMismatchError(
        f"{folder / feature} was begun on {there}, and goes on there so that its numbers stay of one kind; got "
        f"{device if device != 'auto' else 'a computer without it'}. "
        f"Go on with --device {there}, or begin another cache with --cache DIR."
    )


def agreed_runtime(folder: Path, asked: EncoderSpec, device: str, runtime: str) -> None:
    """Check that what is to run an encoder can, and is what its feature was begun with.

    Args:
        folder: of the cache.
        asked: the encoder.
        device: where it is computed, see `agreed_device`.
        runtime: by name, or ``auto`` for the feature's own, or for the best if it is new.

    Raises:
        CacheMismatchError: it was begun with another runtime, or with one that is not here.
        EncoderError: no such runtime here, or a precision that the device does not have.
    """
    if asked.precision == "fp16" and device == "cpu":
        raise EncoderError("precision fp16 needs a GPU; on a CPU use --precision bf16, or the default, fp32")
    begun = begun_feature(folder, asked.feature)
    if begun is None:
        if runtime != "auto":
            check_runtime(runtime, device)
        return
    there, place = str(begun.engine.get("name")), folder / asked.feature
    if runtime not in ("auto", there):
        raise CacheMismatchError(
            f"{place} was begun with the runtime {there}, and goes on with it so that its numbers stay of one kind; "
            f"got {runtime}. Go on with --runtime {there}, or begin another cache with --cache DIR."
        )
    try:
        check_runtime(there, device)
    except EncoderError as error:
        release = f" {begun.engine['version']}" if begun.engine.get("version") else ""
        raise CacheMismatchError(
            f"{place} was begun with the runtime {there}{release}, and goes on with it so that its numbers stay of one "
            f"kind, but {error}. Install it, or begin another cache with --cache DIR."
        ) from error
