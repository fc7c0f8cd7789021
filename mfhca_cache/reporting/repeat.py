"""The commands that repeat a run, from what it and its cache remember."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mfhca_cache.corpora import CORPORA
from mfhca_cache.errors import TrainingError
from mfhca_cache.reporting.stored import StoredRun
from mfhca_cache.storage.cache import Cache
from mfhca_cache.storage.command import extract_words
from mfhca_cache.training.changes import changes_name
from mfhca_cache.training.crossval import name_of
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
    corpus, tested = str(record["corpus"]), record.get("test_corpus")
    lines = [shlex.join(["mfhca", "manifest", *_manifest(corpus, corpus)]), *_extract(record, cache, [])]
    if tested:
        name = _tested(record)
        lines.append(shlex.join(["mfhca", "manifest", *_manifest(str(tested), name)]))
        # There are two manifests now; and two tables would share a cache by their corpus's name.
        where = ["--manifest", f"manifests/{name}.csv", *(["--cache", f"cache/{name}"] if name != tested else [])]
        lines += _extract(record, cache, where)
    lines.append(shlex.join(_train(run, seeds)))
    more = ["--seeds", str(seeds)] if seeds > 1 else []
    lines.append(shlex.join(["mfhca", "report", f"runs/{run.folder.resolve().name}", *more]))
    return lines


def _tested(record: dict[str, Any]) -> str:
    """What the manifest and the cache of the corpus that is tested are called: not as those of the one that trains."""
    tested = str(record["test_corpus"])
    return f"{tested}-test" if tested == record["corpus"] else tested


def _manifest(corpus: str, name: str) -> list[str]:
    if corpus in CORPORA and corpus != "table":
        return [corpus, CORPUS]
    return ["table", f"{CORPUS}/TABLE.csv", "-o", f"manifests/{name}.csv"]


def _extract(record: dict[str, Any], cache: Cache | None, where: list[str]) -> list[str]:
    """One command where an encoder's brings the spectrogram with it, else one a feature."""
    names = list(dict.fromkeys(record["features"].values()))
    if cache is None or any(name not in cache.features for name in names):
        words = shlex.join(["mfhca", "extract", *where])
        return [f"{words}   # features {', '.join(names)}, by the settings that their feature.json holds"]
    infos = [cache.features[name] for name in names]
    if any(info.kind == "encoder" for info in infos):
        infos = [info for info in infos if info.kind != "spectrogram"]
    return [shlex.join([*extract_words(cache.path, cache.plan, info), *where]) for info in infos]


def _train(run: StoredRun, seeds: int) -> list[str]:
    """`mfhca train` with what is not its default."""
    record, folder = run.results[0].record, run.folder.resolve().name
    own = ":" in str(record["model"])
    preset, tested = str(record["preset"]), record.get("test_corpus")
    words = ["mfhca", "train"]
    words += [] if record["model"] == "mfhca" else ["--model", str(record["model"])]
    words += ["--cache", f"cache/{record['corpus']}", "--test-cache", f"cache/{_tested(record)}"] if tested else []
    words += ["--features", "+".join(record["features"].values())]
    words += [] if preset == (DEFAULT_PRESET if record["model"] == "mfhca" else OTHER_PRESET) else ["--preset", preset]
    plain = folder.removesuffix(f"-seed{record['seed']}") if record["seed"] else folder
    # The changes in the order that the run's name has them, so that the same name comes of them.
    changes = sorted(_changes(record, own), key=lambda change: plain.find(changes_name([change])))
    words += [word for change in changes for word in _option(*change)]
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
    source = record.get("folds_from")
    usual = name_of(
        str(record["corpus"]), str(tested or ""), str(record["model"]), record["features"], str(record["protocol"]),
        Path(source["name"]) if source else None, preset,
        [change for change in changes if change[0] not in _OPTIONS],
    )  # fmt: skip
    return words if plain == usual else [*words, "--name", plain]


#: Changes that have an option of their own, which the run's name does not show.
_OPTIONS = {"learning_rate": "--learning-rate", "epochs": "--epochs"}


def _option(name: str, value: Any) -> list[str]:
    if name in _OPTIONS:
        return [_OPTIONS[name], f"{value:g}"]
    return ["--set", f"{name}={','.join(map(str, value)) if isinstance(value, tuple) else value}"]


def _changes(record: dict[str, Any], own: bool) -> list[tuple[str, Any]]:
    """What turns the preset's recipe and model into the run's: names and values."""
    try:
        usual = TrainOptions(model=DEFAULT_MODEL if own else str(record["model"]), preset=str(record["preset"]))
    except TrainingError:  # Of another version, which had other presets and models.
        return []
    recipe, given = asdict(usual.recipe), record["recipe"]
    differs = [(key, value) for key, value in given.items() if key in _OPTIONS and recipe.get(key) != value]
    differs += [(key, value) for key, value in given.items() if key not in _OPTIONS and recipe.get(key) != value]
    if not own:
        model = {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(usual.settings).items()}
        decided = FROM_THE_CACHE | (FROM_THE_FIT if usual.closed_form else set())
        chosen = {key: model[key] for key in model if key not in decided}
        differs += [(key, v) for key, v in record["model_settings"].items() if key in chosen and chosen[key] != v]
    return [(key, tuple(value) if isinstance(value, list) else value) for key, value in differs]
