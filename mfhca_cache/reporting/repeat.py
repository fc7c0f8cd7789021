"""The commands that repeat a run, from what it and its cache remember."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from typing import Any

from mfhca_cache.corpora import CORPORA
from mfhca_cache.errors import TrainingError
from mfhca_cache.reporting.stored import StoredRun
from mfhca_cache.storage.cache import Cache
from mfhca_cache.storage.command import extract_words
from mfhca_cache.training.options import DEFAULT_PRESET, FROM_THE_CACHE, FROM_THE_FIT, OTHER_PRESET, TrainOptions

DEFAULT_MODEL = "mfhca"
#: Where the reader's copy of a corpus lies is not known here.
CORPUS = "CORPUS_FOLDER"


def commands(run: StoredRun, cache: Cache | None, seeds: int = 1) -> list[str]:
    """Manifest, extraction, training and report, in order, as they would be typed in an empty folder.

    Args:
        cache: the run's cache; without it the extraction is only known by its features' names.
        seeds: how many runs are joined, this one the first.
    """
    record = run.results[0].record
    corpus = str(record["corpus"])
    lines = [shlex.join(["mfhca", "manifest", *_manifest(corpus)])]
    lines += _extract(record, cache)
    if tested := record.get("test_corpus"):
        lines.append(shlex.join(["mfhca", "manifest", *_manifest(str(tested))]))
        lines += [f"{line} --manifest manifests/{tested}.csv" for line in _extract(record, cache)]
    lines.append(shlex.join(_train(run, seeds)))
    more = ["--seeds", str(seeds)] if seeds > 1 else []
    lines.append(shlex.join(["mfhca", "report", f"runs/{run.folder.resolve().name}", *more]))
    return lines


def _manifest(corpus: str) -> list[str]:
    if corpus in CORPORA and corpus != "table":
        return [corpus, CORPUS]
    return ["table", f"{CORPUS}/TABLE.csv", "-o", f"manifests/{corpus}.csv"]


def _extract(record: dict[str, Any], cache: Cache | None) -> list[str]:
    """One command where an encoder's brings the spectrogram with it, else one a feature."""
    names = list(dict.fromkeys(record["features"].values()))
    if cache is None or any(name not in cache.features for name in names):
        return [f"mfhca extract   # features {', '.join(names)}, by the settings that their feature.json holds"]
    infos = [cache.features[name] for name in names]
    if any(info.kind == "encoder" for info in infos):
        infos = [info for info in infos if info.kind != "spectrogram"]
    return [shlex.join(extract_words(cache.path, cache.plan, info)) for info in infos]


def _train(run: StoredRun, seeds: int) -> list[str]:
    """`mfhca train` with what is not its default."""
    record, folder = run.results[0].record, run.folder.resolve().name
    own = ":" in str(record["model"])
    preset, tested = str(record["preset"]), record.get("test_corpus")
    words = ["mfhca", "train"]
    words += [] if record["model"] == "mfhca" else ["--model", str(record["model"])]
    words += ["--cache", f"cache/{record['corpus']}", "--test-cache", f"cache/{tested}"] if tested else []
    words += ["--features", "+".join(record["features"].values())]
    words += [] if preset == (DEFAULT_PRESET if record["model"] == "mfhca" else OTHER_PRESET) else ["--preset", preset]
    words += _changes(record, own)
    if source := record.get("folds_from"):
        words += ["--folds", str(source["name"])]
        words += ["--allow-leaks"] if run.summary.optimistic else []
    elif record["protocol"] != "strict" and not tested:
        words += ["--protocol", str(record["protocol"])]
    label = str(record["class_map"])
    if label != "four-class":
        words += ["--classes", label if label == "all" else f"{label}.json"]
    words += ["--precision", str(record["precision"])] if record.get("precision", "fp32") != "fp32" else []
    words += ["--threads", str(record["threads"])] if "threads" in record else []
    words += ["--seed", str(record["seed"])] if record["seed"] else []
    words += ["--seeds", str(seeds)] if seeds > 1 else []
    plain = folder.removesuffix(f"-seed{record['seed']}") if record["seed"] else folder
    return words if plain == _usual_name(record) else [*words, "--name", plain]


def _usual_name(record: dict[str, Any]) -> str:
    """What `mfhca train` calls the run by itself; folds from a file are called by it, and so is their run."""
    protocol, model = str(record["protocol"]), str(record["model"]).rpartition(":")[2]
    return "-".join([record["corpus"], model, "+".join(record["features"].values()), protocol, record["preset"]])


def _changes(record: dict[str, Any], own: bool) -> list[str]:
    """The options that turn the preset's recipe and model into the run's."""
    try:
        usual = TrainOptions(model=DEFAULT_MODEL if own else str(record["model"]), preset=str(record["preset"]))
    except TrainingError:  # Of another version, which had other presets and models.
        return []
    recipe, words, given = asdict(usual.recipe), [], record["recipe"]
    for name, option in (("learning_rate", "--learning-rate"), ("epochs", "--epochs")):
        if given.get(name, recipe[name]) != recipe[name]:
            words += [option, f"{given[name]:g}"]
    differs = [(k, v) for k, v in given.items() if k not in ("learning_rate", "epochs") and recipe.get(k) != v]
    if not own:
        model = {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(usual.settings).items()}
        decided = FROM_THE_CACHE | (FROM_THE_FIT if usual.closed_form else set())
        chosen = {key: model[key] for key in model if key not in decided}
        differs += [(key, v) for key, v in record["model_settings"].items() if key in chosen and chosen[key] != v]
    for key, value in differs:
        words += ["--set", f"{key}={','.join(map(str, value)) if isinstance(value, list) else value}"]
    return words
