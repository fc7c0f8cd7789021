"""mfhca-cache: frozen speech features extracted once, and emotion recognition trained from them with honest scores.

    import mfhca_cache

    manifest = mfhca_cache.read_corpus("emodb", "/data/emodb")
    mfhca_cache.extract(manifest, "cache/emodb", mfhca_cache.ExtractSpec())
    cache = mfhca_cache.open_cache("cache/emodb")
    loaded = cache.load(["spectrogram", "hubert-base-ls960"])
    dataset = cache.dataset("hubert-base-ls960", where="speaker != '03'")
    result = mfhca_cache.train_fold(cache, 1, mfhca_cache.TrainOptions(preset="frozen"))

Names are loaded when they are first used, so that importing the package loads neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mfhca_cache.corpora import read_corpus as read_corpus
    from mfhca_cache.errors import MfhcaError as MfhcaError
    from mfhca_cache.extraction.pipeline import extract as extract
    from mfhca_cache.extraction.report import ExtractReport as ExtractReport
    from mfhca_cache.folds import Fold as Fold
    from mfhca_cache.folds import make_folds as make_folds
    from mfhca_cache.manifest import Manifest as Manifest
    from mfhca_cache.manifest import read_manifest as read_manifest
    from mfhca_cache.manifest import write_manifest as write_manifest
    from mfhca_cache.reporting.ablation import tabulate as tabulate
    from mfhca_cache.reporting.compare import compare_runs as compare_runs
    from mfhca_cache.reporting.gap import summarise_gap as summarise_gap
    from mfhca_cache.reporting.page import write_page as write_page
    from mfhca_cache.reporting.summary import summarise as summarise
    from mfhca_cache.spec import ClipSpec as ClipSpec
    from mfhca_cache.spec import EncoderSpec as EncoderSpec
    from mfhca_cache.spec import ExtractSpec as ExtractSpec
    from mfhca_cache.spec import LogMelSpec as LogMelSpec
    from mfhca_cache.spec import MFCCSpec as MFCCSpec
    from mfhca_cache.spec import SpectrogramSpec as SpectrogramSpec
    from mfhca_cache.splits.choose import folds_of as folds_of
    from mfhca_cache.splits.export import export_folds as export_folds
    from mfhca_cache.splits.leaks import find_leaks as find_leaks
    from mfhca_cache.storage.cache import Cache as Cache
    from mfhca_cache.storage.cache import open_cache as open_cache
    from mfhca_cache.storage.dataset import CacheDataset as CacheDataset
    from mfhca_cache.storage.dataset import frame_mask as frame_mask
    from mfhca_cache.training.ablation import plan_ablation as plan_ablation
    from mfhca_cache.training.ablation import train_ablation as train_ablation
    from mfhca_cache.training.crossval import cross_validate as cross_validate
    from mfhca_cache.training.data import labelled_utterances as labelled_utterances
    from mfhca_cache.training.gap import plan_gap as plan_gap
    from mfhca_cache.training.gap import train_gap as train_gap
    from mfhca_cache.training.options import TrainOptions as TrainOptions
    from mfhca_cache.training.result import FoldResult as FoldResult
    from mfhca_cache.training.result import load_checkpoint as load_checkpoint
    from mfhca_cache.training.trainer import train_fold as train_fold

_HOMES = {
    "read_corpus": "corpora",
    "MfhcaError": "errors",
    "ExtractReport": "extraction.report",
    "extract": "extraction.pipeline",
    "Fold": "folds",
    "make_folds": "folds",
    "Manifest": "manifest",
    "read_manifest": "manifest",
    "write_manifest": "manifest",
    "tabulate": "reporting.ablation",
    "compare_runs": "reporting.compare",
    "summarise_gap": "reporting.gap",
    "write_page": "reporting.page",
    "summarise": "reporting.summary",
    "ClipSpec": "spec",
    "EncoderSpec": "spec",
    "ExtractSpec": "spec",
    "LogMelSpec": "spec",
    "MFCCSpec": "spec",
    "SpectrogramSpec": "spec",
    "folds_of": "splits.choose",
    "export_folds": "splits.export",
    "find_leaks": "splits.leaks",
    "Cache": "storage.cache",
    "open_cache": "storage.cache",
    "CacheDataset": "storage.dataset",
    "frame_mask": "storage.dataset",
    "plan_ablation": "training.ablation",
    "train_ablation": "training.ablation",
    "cross_validate": "training.crossval",
    "labelled_utterances": "training.data",
    "plan_gap": "training.gap",
    "train_gap": "training.gap",
    "TrainOptions": "training.options",
    "FoldResult": "training.result",
    "load_checkpoint": "training.result",
    "train_fold": "training.trainer",
}

__all__ = sorted([*_HOMES, "__version__"])


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib import metadata

        return metadata.version("mfhca-cache")
    if name not in _HOMES:
        raise AttributeError(f"mfhca_cache has no {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
