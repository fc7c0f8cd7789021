"""The command that goes on with a feature, as messages name it."""

from __future__ import annotations

import shlex
from pathlib import Path

from mfhca_cache.storage.descriptions import read_feature
from mfhca_cache.storage.layout import FeatureInfo, Plan


def extract_command(folder: Path, plan: Plan, info: FeatureInfo, split: str | None) -> str:
    """The `mfhca extract` that goes on with a feature, by the settings that it was begun with."""
    return shlex.join([*_begin(folder, plan), *_options(folder, info), *_choices(plan, info.dtype, split)])


def extract_words(folder: Path, plan: Plan, info: FeatureInfo) -> list[str]:
    """The words of an `mfhca extract` that makes a feature anew, in the usual place and from the usual manifest."""
    return ["mfhca", "extract", *_options(folder, info), *_choices(plan, info.dtype, None)]


def adding_command(folder: Path, plan: Plan, features: str) -> str:
    """The `mfhca extract` that adds an acoustic feature, such as ``mfcc``, to a cache that has none such."""
    words = [*_begin(folder, plan), "--encoder", "none", "--features", features]
    return shlex.join(words + _choices(plan, "float16", None))


def adding_encoder_command(folder: Path, plan: Plan, encoder: str, *more: str) -> str:
    """The `mfhca extract` that adds a speech encoder's features, with more of its options, to a cache without them."""
    words = [*_begin(folder, plan), "--encoder", encoder, *more, "--features", "none"]
    return shlex.join(words + _choices(plan, "float16", None))


def _begin(folder: Path, plan: Plan) -> list[str]:
    words = ["mfhca", "extract", "--cache", str(folder)]
    tables = sorted(Path("manifests").glob("*.csv"))
    if len(tables) != 1:
        named = Path("manifests") / f"{plan.corpus}.csv"
        words += ["--manifest", str(named) if named in tables else "MANIFEST.csv"]
    return words


def _options(folder: Path, info: FeatureInfo) -> list[str]:
    """The options that mean a feature of this cache, and the spectrogram's where it comes along."""
    beside = (folder / "spectrogram" / "feature.json").exists()
    words = _feature_options(info, beside)
    if info.kind == "spectrogram" or (info.kind == "encoder" and beside):
        pre_emphasis = read_feature(folder, "spectrogram").settings.get("pre_emphasis")
        words += ["--pre-emphasis", str(pre_emphasis)] if pre_emphasis else []
    return words


def _choices(plan: Plan, dtype: str, split: str | None) -> list[str]:
    """The options that do not have their default."""
    words: list[str] = []
    for option, value, default in (
        ("--rows", plan.rows, "four-class"),
        ("--pad", plan.clip.pad, "audio"),
        ("--dtype", dtype, "float16"),
        ("--split", split, None),
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
