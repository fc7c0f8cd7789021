"""What the protocols of a gap amount to: their scores side by side, and the optimism of each in points.

Differences are given as those of the tables' own figures (fold means, pooled), and paired: every speaker's WA and UA
under the one protocol minus the same speaker's under the other, over utterances, the mean over seeds first. Speakers
are what was drawn by chance, so the interval is Student's t over them.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from mfhca_cache.errors import TrainingError
from mfhca_cache.folds import peeked
from mfhca_cache.reporting.conclude import points
from mfhca_cache.reporting.intervals import LEVEL, Estimate, Interval, average, estimates, fold_mean
from mfhca_cache.reporting.joined import SCORES, JoinedSummary, join
from mfhca_cache.reporting.paired import Difference, paired_difference
from mfhca_cache.reporting.summary import summarise
from mfhca_cache.storage.publish import publish, publish_json

#: What is compared: a protocol, and what it is compared with. `_holds` says what the difference is made of.
CONTRASTS = (
    (peeked("strict"), "strict"),
    ("test-selected", "strict"),
    ("session", "strict"),
    (peeked("session"), "session"),
)
#: The same effect in UA points, as emotion2vec's table has it: folds → points.
PUBLISHED = {5: 2.7, 10: 4.7}
PUBLISHED_NOTE = "Published elsewhere (emotion2vec's table): +2.7 points on 5 folds, +4.7 on 10."


@dataclass(frozen=True)
class Contrast:
    """How much higher one protocol's scores are than another's.

    Attributes:
        protocol, base: a pair of `CONTRASTS`.
        holds: what the difference is made of.
        mean, pooled: ``<level>_wa`` and so on → difference of the fold means, and of the pooled scores.
        paired: ``utterance_wa`` and ``utterance_ua`` → both means over speakers, and their difference.
        speakers: under the same names, speaker → difference.
    """

    protocol: str
    base: str
    holds: str
    mean: dict[str, float]
    pooled: dict[str, float]
    paired: dict[str, Difference]
    speakers: dict[str, dict[str, float]]

    @property
    def sentence(self) -> str:
        """The difference in words, UA over utterances."""
        found, speakers = self.paired["utterance_ua"], self.speakers["utterance_ua"]
        interval, std, count = found.interval, _std(speakers), len(speakers)
        text = f"{self.protocol} − {self.base}: {points(found.difference)} points of UA, "
        if std is None:
            return f"{text}of one speaker, so without a spread. It holds {self.holds}."
        if interval is None:
            same = "the same for each" if any(speakers.values()) else "no speaker's UA differs"
            return f"{text}mean over {count} speakers; {same}, so without an interval. It holds {self.holds}."
        low, high = points(interval.low), points(interval.high)
        text += f"mean over {count} speakers (std {100 * std:.1f}, {100 * LEVEL:g} % interval {low} to {high}). "
        text += f"It holds {self.holds}."
        if interval.low <= 0 <= interval.high:
            text += f" Zero is within: {count} speakers do not tell it from none."
        return text


@dataclass(frozen=True)
class GapSummary:
    """The protocols of a gap.

    Attributes:
        protocols: protocol → its runs, one a seed, joined.
        contrasts: in the order of `CONTRASTS`.
    """

    protocols: dict[str, JoinedSummary]
    contrasts: tuple[Contrast, ...]

    @property
    def seeds(self) -> list[int]:
        """The seeds of every protocol."""
        return [int(run.settings["seed"]) for run in next(iter(self.protocols.values())).runs]

    @property
    def settings(self) -> dict[str, Any]:
        """What all the runs have in common: corpus, model, features (role → name) and preset."""
        settings = next(iter(self.protocols.values())).runs[0].settings
        return {name: settings[name] for name in ("corpus", "model", "features", "preset")}

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain JSON values."""
        return {
            **self.settings,
            "seeds": self.seeds,
            "protocols": {
                name: {
                    "optimistic": any(run.optimistic for run in joined.runs),
                    "runs": [run.run.name for run in joined.runs],
                    "caveats": list(dict.fromkeys(line for run in joined.runs for line in run.caveats)),
                    "folds": len(joined.runs[0].folds),
                    "mean": joined.mean,
                    "std": joined.std,
                    "intervals": {key: asdict(item) for key, item in joined.intervals.items()},
                    "pooled": joined.pooled_mean,
                    "pooled_std_of_seeds": joined.pooled_std,
                    "pooled_intervals": {key: asdict(item) for key, item in joined.pooled_intervals.items()},
                }
                for name, joined in self.protocols.items()
            },
            "optimism": [
                {
                    "protocol": item.protocol,
                    "base": item.base,
                    "holds": item.holds,
                    "mean": item.mean,
                    "pooled": item.pooled,
                    "paired": {
                        name: {**asdict(found), "std": _std(item.speakers[name]), "speakers": item.speakers[name]}
                        for name, found in item.paired.items()
                    },
                    "sentence": item.sentence,
                }
                for item in self.contrasts
            ],
            "published": {
                "points": {str(folds): points for folds, points in PUBLISHED.items()},
                "note": PUBLISHED_NOTE,
            },
        }

    def to_table(self) -> pd.DataFrame:
        """A row a protocol and a row a difference; scores in 0…1, caveats in every row that has one."""
        rows: list[dict[str, Any]] = []
        for name, joined in self.protocols.items():
            run = joined.runs[0]
            row = {"what": name, "folds": len(run.folds), "seeds": len(joined.runs)}
            row |= _columns(joined.mean, joined.pooled_mean) | {f"{key}_std": joined.std.get(key) for key in SCORES}
            row |= _ends("mean", joined.intervals) | _ends("pooled", joined.pooled_intervals)
            rows.append(row | {"caveats": "; ".join(run.caveats)})
        for item in self.contrasts:
            row = {"what": f"{item.protocol} − {item.base}", "seeds": len(self.seeds)}
            row |= _columns(item.mean, item.pooled)
            for name, found in item.paired.items():
                low, high = (found.interval.low, found.interval.high) if found.interval else (None, None)
                row |= {f"speaker_{name}": found.difference, f"speaker_{name}_std": _std(item.speakers[name])}
                row |= {f"speaker_{name}_low": low, f"speaker_{name}_high": high}
            rows.append(row | {"caveats": item.holds})
        return pd.DataFrame(rows).astype({"folds": "Int64"})


def summarise_gap(runs: Mapping[str, Sequence[Path]]) -> GapSummary:
    """Read the runs of a gap.

    Args:
        runs: protocol → folders, one a seed, as `mfhca_cache.training.gap.train_gap` gives them.

    Raises:
        TrainingError: a run is not there, or not trained to its end.
    """
    protocols = {name: join(summarise(run) for run in folders) for name, folders in runs.items()}
    for joined in protocols.values():
        for run in joined.runs:
            if run.missing:
                raise TrainingError(f"{run.run}: not trained yet: {', '.join(run.missing)}; `mfhca gap` goes on")
    return GapSummary(protocols, tuple(_contrast(protocol, base, protocols) for protocol, base in CONTRASTS))


def _contrast(protocol: str, base: str, protocols: Mapping[str, JoinedSummary]) -> Contrast:
    one, other = protocols[protocol], protocols[base]
    names = one.runs[0].counts["utterance"].speakers
    words = f"t over {len(names)} speakers' differences"
    words += f", averaged over {len(one.runs)} seeds" if len(one.runs) > 1 else ""
    a, b = _by_speaker(one), _by_speaker(other)
    apart = {name: a[name] - b[name] for name in a}
    return Contrast(
        protocol,
        base,
        _holds(protocol, base, protocols, len(names)),
        _minus(one.mean, other.mean),
        _minus(one.pooled_mean, other.pooled_mean),
        {name: paired_difference(a[name], b[name], words) for name in a},
        {
            name: dict(zip(names, (found.value + found.deviations).tolist(), strict=True))
            for name, found in apart.items()
        },
    )


def _holds(protocol: str, base: str, protocols: Mapping[str, JoinedSummary], speakers: int) -> str:
    """What a difference is made of, in words."""
    if protocol == peeked(base):
        return f"selection alone: the trainings of {base}, their epochs chosen on the test set"
    if protocol == "test-selected":
        return f"selection, and one more speaker in training ({speakers - 1} instead of {speakers - 2})"
    folds = [len(protocols[name].runs[0].folds) for name in (protocol, base)]
    sizes = f", in {folds[0]} larger folds instead of {folds[1]}" if folds[0] < folds[1] else ""
    return f"a validation set of speakers whom training knows, the rest of whose utterances it has{sizes}"


def write_gap(summary: GapSummary, folder: Path) -> tuple[Path, Path]:
    """Write gap.json and gap.csv into a folder; their paths.

    Raises:
        TrainingError: the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"{folder}: could not be made ({error.strerror})") from error
    paths = folder / "gap.json", folder / "gap.csv"
    publish_json(paths[0], summary.to_json())
    publish(paths[1], summary.to_table().to_csv(index=False, lineterminator="\n").encode())
    return paths


def _by_speaker(joined: JoinedSummary) -> dict[str, Estimate]:
    """``utterance_wa`` and ``utterance_ua``: the mean over speakers of each one's own score, the mean over seeds."""
    counts = [run.counts["utterance"] for run in joined.runs]
    each = [estimates({"utterance": replace(of, fold=of.speaker)}, fold_mean) for of in counts]
    return {name: average([of[name] for of in each]) for name in each[0]}


def _std(speakers: Mapping[str, float]) -> float | None:
    """The sample's standard deviation; None for a single speaker."""
    return statistics.stdev(speakers.values()) if len(speakers) > 1 else None


def _ends(kind: str, intervals: Mapping[str, Interval]) -> dict[str, float | None]:
    """``<level>_wa_mean_low`` and so on; None where there is no interval."""
    found = {key: intervals.get(key) for key in SCORES}
    return {f"{key}_{kind}_{end}": getattr(item, end, None) for key, item in found.items() for end in ("low", "high")}


def _minus(one: dict[str, float], other: dict[str, float]) -> dict[str, float]:
    return {name: one[name] - other[name] for name in one}


def _columns(mean: dict[str, float], pooled: dict[str, float]) -> dict[str, Any]:
    return {f"{key}_mean": mean[key] for key in SCORES} | {f"{key}_pooled": pooled[key] for key in SCORES}
