"""What a reader must be told beside the scores, in sentences: how folds were cut, what they share, what scores are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mfhca_cache.reporting.stored import StoredRun
from mfhca_cache.reporting.summary import PAPER_CAVEAT, RunSummary

_PROTOCOLS = {
    "strict": (
        "Protocol strict: each fold tests on one speaker and chooses its epoch on another, the other speaker of that "
        "session or, where sessions pair no speakers, the next one. It trains on the rest."
    ),
    "test-selected": (
        "Protocol test-selected: each fold tests on one speaker and chooses its epoch on that same speaker, as the "
        "released code of MFHCA does. Its scores are optimistic: they are the best of many looks at the test set."
    ),
    "session": (
        "Protocol session: each fold tests on one session or, where a corpus has none, on one of five groups of "
        "speakers. It holds out 20 % of the remaining utterances, drawn with the seed, to choose the epoch, and trains "
        "on the rest. The speakers of validation are also in training."
    ),
    "cross-corpus": (
        "Across corpora: one model is trained on one corpus, a part of which chooses the epoch, and is tested on all "
        "of another."
    ),
    "imported": "The folds come from a file of others; who tests, chooses and trains is as that file has it.",
}
SCORE_WORDS = (
    "WA (weighted accuracy) is the share of test items that are right. UA (unweighted accuracy) is the mean of the "
    "recalls of the classes that the test set has, so that each class counts alike. An utterance is cut into clips; "
    "its prediction is the class with the largest mean of its clips' log-probabilities. Scores of utterances are the "
    "headline; scores of clips are given because some papers report those."
)
POOLED = (
    "Fold mean ± std is over the folds' scores (the sample's standard deviation). Pooled is the score of all test "
    "items of all folds taken as one set."
)
RANDOM = "The encoder has random weights: its features mean nothing, and no score here says anything of the method."


def protocol_words(run: StoredRun) -> list[str]:
    """Paragraphs on how the folds were cut and what they share."""
    record, summary = run.results[0].record, run.summary
    words = [_PROTOCOLS.get(record["protocol"], f"Protocol {record['protocol']}.")]
    if source := summary.folds_from:
        words[0] += f" It is {source['name']} ({source['shape']}, SHA-256 {source['sha256']})."
    counts = [result.record["utterances"] for result in run.results]
    parts = [f"{_range([c[part] for c in counts])} {word}" for part, word in _PARTS]
    words.append(f"A fold has {parts[0]}, {parts[1]} and {parts[2]} utterances. No test speaker is in training.")
    if any("leak" in line for line in summary.caveats) or (record["protocol"] == "imported" and summary.optimistic):
        words[-1] = f"A fold has {parts[0]}, {parts[1]} and {parts[2]} utterances."
    overlaps: dict[str, int] = {}
    for result in run.results:
        for what, count in result.record.get("overlaps", {}).items():
            overlaps[what] = overlaps.get(what, 0) + count
    for what, count in overlaps.items():
        part = what.split()[0]
        total = f" of {sum(c[part] for c in counts):,}" if part in counts[0] else ""
        words.append(f"{what[:1].upper()}{what[1:]}: {count:,}{total}, all folds together.")
    if rejected := int(record.get("rejected", 0)):
        words.append(f"{rejected:,} utterances of the corpus were rejected when features were extracted.")
    return words


_PARTS = (("train", "training"), ("validation", "validation"), ("test", "test"))


def paper_words(summary: RunSummary) -> str | None:
    """The paper's figures and their caveat, where they apply."""
    if not summary.paper:
        return None
    wa, ua, row = summary.paper
    return f"The paper states WA {wa:.2f} and UA {ua:.2f} ({row}). {PAPER_CAVEAT}"


def where(run: StoredRun) -> str:
    """A sentence for the caption of every table: what it is of, and what must be said wherever it is shown."""
    settings = run.summary.settings
    text = (
        f"{settings['corpus']}, {settings['model']} on {' + '.join(settings['features'].values())}, protocol "
        f"{settings['protocol']}, preset {settings['preset']}, seed {settings['seed']}."
    )
    return " ".join([text, *(f"Caution: {line.rstrip('.')}." for line in run.summary.caveats)])


def missing_words(summary: RunSummary) -> str | None:
    """Which folds are not trained yet, and what that means for the means."""
    if not summary.missing:
        return None
    total = len(summary.missing) + len(summary.folds)
    return (
        f"{len(summary.missing)} of {total} folds are not trained yet: {', '.join(summary.missing)}. Every mean and "
        "pooled score here is of the folds that are there."
    )


def settings_rows(run: StoredRun) -> list[tuple[str, list[tuple[str, str]]]]:
    """Headings and their rows of settings: recipe, model, where it was trained, versions, fingerprints."""
    record = run.results[0].record
    seconds = sum(float(result.record["seconds"]) for result in run.results)
    devices = dict.fromkeys(str(result.record["device"]) for result in run.results)
    training = [(key.replace("_", " "), _value(value)) for key, value in record.get("recipe", {}).items()]
    training += [("precision", _value(record.get("precision", "fp32"))), ("seed", str(record["seed"]))]
    model = [(key.replace("_", " "), _value(value)) for key, value in record["model_settings"].items()]
    model.insert(0, ("trainable parameters", f"{record['parameters']:,}"))
    if source := record.get("model_source"):
        model.append(("source, SHA-256", str(source["sha256"])))
    machine = [("device", ", ".join(devices)), ("threads of a fold", str(record.get("threads", "")))]
    machine += [("seconds of all folds", f"{seconds:,.0f}")]
    versions = dict.fromkeys(pair for result in run.results for pair in result.record["versions"].items())
    prints = [
        (f"features {name}" if name != "plan" else "clips (plan)", value) for name, value in record["cache"].items()
    ]
    prints.append(("utterances in use", str(run.identity.get("utterances", ""))))
    return [
        ("Training", training),
        ("Model", model),
        ("Machine", machine),
        ("Versions", [(name, version) for name, version in versions]),
        ("Fingerprints (SHA-256)", prints),
    ]


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_value, value))
    if isinstance(value, dict):
        return "; ".join(f"{key}: {_value(item)}" for key, item in value.items())
    return f"{value:,}" if isinstance(value, int) and value >= 10_000 else str(value)


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
