"""What a reader must be told beside the scores, in sentences: how folds were cut, what they share, what scores are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mfhca_cache.folds import OPTIMISTIC_NOTE
from mfhca_cache.reporting.stored import StoredRun
from mfhca_cache.reporting.summary import PAPER_CAVEAT, RunSummary, corpora

#: {chosen} is what validation chooses: epoch, C or alpha.
_PROTOCOLS = {
    "strict": (
        "Protocol strict: each fold tests on one speaker and chooses its {chosen} on another, the other speaker of "
        "that session or, where sessions pair no speakers, the next one. It trains on the rest."
    ),
    "strict-peeked": (
        "Protocol strict-peeked: each fold tests on one speaker and trains as protocol strict does, on all but that "
        "speaker and another, but chooses its {chosen} on the test speaker. Its scores are optimistic; beside those of "
        "strict they measure what that choice alone is worth."
    ),
    "test-selected": (
        "Protocol test-selected: each fold tests on one speaker and chooses its {chosen} on that same speaker, the "
        "habit of MFHCA's released code. Its scores are optimistic: they are the best of many looks at the test set."
    ),
    "session": (
        "Protocol session: each fold tests on one session or, where a corpus has none, on one of five groups of "
        "speakers. It holds out 20 % of the remaining utterances, drawn with the seed, to choose the {chosen}, and "
        "trains on the rest. The speakers of validation are also in training."
    ),
    "session-peeked": (
        "Protocol session-peeked: each fold tests on one session or group of speakers and trains as protocol session "
        "does, without 20 % of the remaining utterances, but chooses its {chosen} on the test set. Its scores are "
        "optimistic; beside those of session they measure what that choice alone is worth."
    ),
    "cross-corpus": (
        "Across corpora: one model is trained on {corpus}, whole speakers of which (20 %, one at least, drawn with the "
        "seed) choose the {chosen}, and is tested on all of {tested}."
    ),
    "imported": "The folds come from a file of others; who tests, chooses and trains is as that file has it.",
}
_SCORE_WORDS = (
    "WA (weighted accuracy) is the share of test items that are right. UA (unweighted accuracy) is the mean of the "
    "recalls of the classes that the test set has, so that each class counts alike. {how} Scores of utterances are the "
    "headline; scores of clips are given because some papers report those."
)
_OF_CLIPS = (
    "An utterance is cut into clips; its prediction is the class with the largest mean of its clips' log-probabilities."
)
_OF_STATISTICS = (
    "An utterance is classified by statistics of its features: the mean and the standard deviation of all its frames. "
    "A clip is classified by its own, and an utterance's prediction is no mean over its clips."
)
_POOLED = (
    "Fold mean ± std is over the folds' scores (the sample's standard deviation). Pooled is the score of all test "
    "items of all folds taken as one set."
)
_ONE_FOLD = "There is one fold here: its score is the fold mean and the pooled score, and there is no std over folds."
RANDOM = "The encoder has random weights: its features mean nothing, and no score here says anything of the method."


def score_words(summary: RunSummary) -> str:
    """What WA and UA are, and what an utterance's prediction is made of."""
    return _SCORE_WORDS.format(how=_OF_CLIPS if summary.chosen == "epoch" else _OF_STATISTICS)


def pooled_words(summary: RunSummary) -> str:
    """What mean, std and pooled are."""
    return _POOLED if len(summary.folds) > 1 else _ONE_FOLD


def parameters_words(run: StoredRun) -> str:
    """``1,204 parameters``; of a model in closed form, whose folds may differ, ``2,022 to 2,310 fitted numbers``."""
    counts = _range([int(result.record["parameters"]) for result in run.results])
    return f"{counts} {'parameters' if run.summary.chosen == 'epoch' else 'fitted numbers'}"


def curve_words(run: StoredRun) -> str:
    """Why there are no learning curves, where no fold has one."""
    if run.summary.chosen == "epoch":
        return "This run's folds keep no curve of their training."
    grid = run.results[0].record["model_settings"].get("grid", ())
    return (
        "This model is fitted in closed form, not epoch by epoch: it has no learning curve. It is fitted once for each "
        f"{run.summary.chosen} of {', '.join(f'{value:g}' for value in grid)}, and the one with the best validation "
        "UA, of equals the one with the lower loss, is tested; the table of folds has it."
    )


def peeks(run: StoredRun) -> bool:
    """Whether the test set was the validation set of any fold."""
    return any(OPTIMISTIC_NOTE in line for result in run.results for line in result.record["caveats"])


def protocol_words(run: StoredRun) -> list[str]:
    """Paragraphs on how the folds were cut and what they share."""
    record, summary = run.results[0].record, run.summary
    said = _PROTOCOLS.get(record["protocol"], f"Protocol {record['protocol']}.")
    words = [said.format(chosen=summary.chosen, corpus=record["corpus"], tested=record.get("test_corpus"))]
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
        f"{corpora(settings)}, {settings['model']} on {' + '.join(settings['features'].values())}, protocol "
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
    chosen = run.summary.chosen
    if chosen == "epoch":
        training.append(("precision", _value(record.get("precision", "fp32"))))
    else:
        values = ", ".join(f"{value:g}" for value in run.summary.folds[chosen])
        training += [("fit", "closed form, in float64"), (f"{chosen} of each fold", values)]
    training.append(("seed", str(record["seed"])))
    # A file that is not named, as AlexNet's weights mostly are not, is no setting.
    model = [(key.replace("_", " "), _of_folds(run, key)) for key, v in record["model_settings"].items() if v != ""]
    counts = _range([int(result.record["parameters"]) for result in run.results])
    model.insert(0, ("trainable parameters" if chosen == "epoch" else "fitted numbers", counts))
    if source := record.get("model_source"):
        model.append(("source, SHA-256", str(source["sha256"])))
    machine = [("device", ", ".join(devices)), ("threads of a fold", str(record.get("threads", "")))]
    machine += [("seconds of all folds", f"{seconds:,.0f}")]
    versions = dict.fromkeys(pair for result in run.results for pair in result.record["versions"].items())
    prints = [
        (f"features {name}" if name != "plan" else "clips (plan)", value) for name, value in record["cache"].items()
    ]
    if tested := record.get("test_plan"):
        prints.insert(1, (f"clips of {record['test_corpus']} (plan)", str(tested)))
    prints.append(("utterances in use", str(run.identity.get("utterances", ""))))
    return [
        ("Training", training),
        ("Model", model),
        ("Machine", machine),
        ("Versions", [(name, version) for name, version in versions]),
        ("Fingerprints (SHA-256)", prints),
    ]


def _of_folds(run: StoredRun, key: str) -> str:
    """A setting of the model; the range where the fit of each fold decided it."""
    values = [result.record["model_settings"][key] for result in run.results]
    same = all(value == values[0] for value in values)
    return _value(values[0]) if same or not isinstance(values[0], int) else _range(values)


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
