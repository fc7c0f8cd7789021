"""The command that goes on with a feature, as messages name it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from mfhca_cache.storage.descriptions import read_feature
from mfhca_cache.storage.layout import FeatureInfo, Plan


def extract_command(folder: Path, plan: Plan, info: FeatureInfo, split: str | None) -> str:
    """The `mfhca extract` that goes on with a feature, by the settings that it was begun with."""
    beside = (folder / "spectrogram" / "feature.json").exists()
    words = _feature_options(info, beside)
    if info.kind == "spectrogram" or (info.kind == "encoder" and beside):
        pre_emphasis = read_feature(folder, "spectrogram").settings.get("pre_emphasis")
        words += ["--pre-emphasis", str(pre_emphasis)] if pre_emphasis else []
    return _command(folder, plan, words, (("--dtype", info.dtype, "float16"), ("--split", split, None)))


def new_feature_command(folder: Path, plan: Plan, words: Sequence[str]) -> str:
    """The `mfhca extract` that adds a feature, named by its options, to a cache that has none such."""
    return _command(folder, plan, words)


def _command(
    folder: Path, plan: Plan, words: Sequence[str], more: Sequence[tuple[str, str | None, str | None]] = ()
) -> str:
    """`mfhca extract` for this cache: (option, value, default) each is left out where it has its default."""
    start = ["mfhca", "extract", "--cache", str(folder)]
    tables = sorted(Path("manifests").glob("*.csv"))
    if len(tables) != 1:
        named = Path("manifests") / f"{plan.corpus}.csv"
        start += ["--manifest", str(named) if named in tables else "MANIFEST.csv"]
    words = [*start, *words]
    for option, value, default in (("--rows", plan.rows, "four-class"), ("--pad", plan.clip.pad, "audio"), *more):
        if value != default:
            words += [option, str(value)]
    return shlex.join(words)


def _feature_options(info: FeatureInfo, spectrogram: bool) -> list[str]:
    """The options that mean one feature; an encoder's brings the spectrogram with it where the cache has one."""
    name = str(info.source.get("name", ""))
    if info.kind == "text":
        return ["--encoder", "none", "--features", "none", "--text-encoder", name]
    if info.kind != "encoder":
        return ["--encoder", "none", *(["--features", info.name] if info.kind != "spectrogram" else [])]
    words, stem = ["--encoder", name], info.name
    if info.settings.get("precision"):
        words += ["--precision", str(info.settings["precision"])]
        stem = stem.removesuffix(f".{info.settings['precision']}")
    if info.source.get("revision"):
        words += ["--revision", str(info.source["revision"])]
    if info.settings.get("pool"):
        words += ["--pool", str(info.settings["pool"])]
        stem = stem.removesuffix(f".{info.settings['pool']}")
    layers = info.settings.get("layers", "last")
    if layers != "last":
        words += ["--layers", "all" if stem.endswith(".all") else ",".join(map(str, layers))]
    return words if spectrogram else [*words, "--features", "none"]
