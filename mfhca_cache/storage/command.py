"""The command that goes on with a feature, as messages name it."""

from __future__ import annotations

import shlex
from pathlib import Path

from mfhca_cache.storage.descriptions import read_feature
from mfhca_cache.storage.layout import FeatureInfo, Plan


def extract_command(folder: Path, plan: Plan, info: FeatureInfo, split: str | None) -> str:
    """The `mfhca extract` that goes on with a feature, by the settings that it was begun with."""
    where = ["--cache", str(folder)]
    tables = sorted(Path("manifests").glob("*.csv"))
    if len(tables) != 1:
        named = Path("manifests") / f"{plan.corpus}.csv"
        where += ["--manifest", str(named) if named in tables else "MANIFEST.csv"]
    words = extract_words(folder, plan, info)
    return shlex.join([*words[:2], *where, *words[2:], *(["--split", split] if split is not None else [])])


def extract_words(folder: Path, plan: Plan, info: FeatureInfo) -> list[str]:
    """The words of an `mfhca extract` that makes a feature anew, in the usual place and from the usual manifest."""
    words = ["mfhca", "extract"]
    beside = (folder / "spectrogram" / "feature.json").exists()
    words += _feature_options(info, beside)
    if info.kind == "spectrogram" or (info.kind == "encoder" and beside):
        pre_emphasis = read_feature(folder, "spectrogram").settings.get("pre_emphasis")
        words += ["--pre-emphasis", str(pre_emphasis)] if pre_emphasis else []
    for option, value, default in (
        ("--rows", plan.rows, "four-class"),
        ("--pad", plan.clip.pad, "audio"),
        ("--dtype", info.dtype, "float16"),
    ):
        if value != default:
            words += [option, str(value)]
    return words


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
