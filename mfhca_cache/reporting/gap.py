"""What the protocols of a gap amount to: their scores side by side, and the optimism of each in points.

Differences are given as those of the tables' own figures (fold means, pooled), and paired: every speaker's WA and UA
under the one protocol minus the same speaker's under the other, over utterances, the mean over seeds first. Speakers
are what was drawn by chance, so the interval is Student's t over them.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from scipy.stats import t

from mfhca_cache.errors import TrainingError
from mfhca_cache.folds import peeked
from mfhca_cache.reporting.joined import SCORES, JoinedSummary, join
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
LEVEL = 0.95
#: A spread below this is rounding, and no spread.
_NO_SPREAD = 1e-12


@dataclass(frozen=True)
class Paired:
    """Differences of one score over speakers, in −1…1.

    Attributes:
        speakers: speaker → difference, the mean over seeds.
        mean, std: over speakers; std is the sample's, None for a single speaker.
        interval: Student's t over speakers at `LEVEL`; None for a single speaker, and where all differ by the same.
    """

    speakers: dict[str, float]
    mean: float
    std: float | None
    interval: tuple[float, float] | None

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "speakers": self.speakers,
            "mean": self.mean,
            "std": self.std,
            "interval": self.interval and list(self.interval),
            "level": LEVEL,
            "method": f"t over {len(self.speakers)} speakers",
        }


@dataclass(frozen=True)
class Contrast:
    """How much higher one protocol's scores are than another's.

    Attributes:
        protocol, base: a pair of `CONTRASTS`.
        holds: what the difference is made of.
        mean, pooled: ``<level>_wa`` and so on → difference of the fold means, and of the pooled scores.
        paired: ``wa`` and ``ua`` of utterances → differences by speaker.
    """

    protocol: str
    base: str
    holds: str
    mean: dict[str, float]
    pooled: dict[str, float]
    paired: dict[str, Paired]

    @property
    def sentence(self) -> str:
        """The difference in words, UA over utterances."""
        paired, count = self.paired["ua"], len(self.paired["ua"].speakers)
        text = f"{self.protocol} − {self.base}: {points(paired.mean, 1)} points of UA, "
        if paired.std is None:
            return f"{text}of one speaker, so without a spread. It holds {self.holds}."
        if paired.interval is None:
            same = "the same for each" if any(paired.speakers.values()) else "no speaker's UA differs"
            return f"{text}mean over {count} speakers; {same}, so without an interval. It holds {self.holds}."
        low, high = (points(value, 1) for value in paired.interval)
        text += f"mean over {count} speakers (std {100 * paired.std:.1f}, 95 % interval {low} to {high}). "
        text += f"It holds {self.holds}."
        if paired.interval[0] <= 0 <= paired.interval[1]:
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

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain JSON values."""
        return {
            "seeds": self.seeds,
            "protocols": {
                name: {
                    "optimistic": any(run.optimistic for run in joined.runs),
                    "runs": [run.run.name for run in joined.runs],
                    "caveats": list(dict.fromkeys(line for run in joined.runs for line in run.caveats)),
                    "folds": len(joined.runs[0].folds),
                    "mean": joined.mean,
                    "std": joined.std,
                    "pooled": joined.pooled_mean,
                    "pooled_std_of_seeds": joined.pooled_std,
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
                    "paired": {name: paired.to_json() for name, paired in item.paired.items()},
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
            rows.append(row | {"caveats": "; ".join(run.caveats)})
        for item in self.contrasts:
            row = {"what": f"{item.protocol} − {item.base}", "seeds": len(self.seeds)}
            row |= _columns(item.mean, item.pooled)
            for name, paired in item.paired.items():
                low, high = paired.interval or (None, None)
                row |= {f"speaker_{name}": paired.mean, f"speaker_{name}_std": paired.std}
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
    speakers = {name: _by_speaker(joined) for name, joined in protocols.items()}
    contrasts = tuple(
        Contrast(
            protocol,
            base,
            _holds(protocol, base, protocols, len(speakers["strict"]["ua"])),
            _minus(protocols[protocol].mean, protocols[base].mean),
            _minus(protocols[protocol].pooled_mean, protocols[base].pooled_mean),
            {name: paired(_minus(speakers[protocol][name], speakers[base][name])) for name in ("wa", "ua")},
        )
        for protocol, base in CONTRASTS
    )
    return GapSummary(protocols, contrasts)


def _holds(protocol: str, base: str, protocols: Mapping[str, JoinedSummary], speakers: int) -> str:
    """What a difference is made of, in words."""
    if protocol == peeked(base):
        return f"selection alone: the trainings of {base}, their epochs chosen on the test set"
    if protocol == "test-selected":
        return f"selection, and one more speaker in training ({speakers - 1} instead of {speakers - 2})"
    folds = [len(protocols[name].runs[0].folds) for name in (protocol, base)]
    sizes = f", in {folds[0]} larger folds instead of {folds[1]}" if folds[0] < folds[1] else ""
    return f"a validation set of speakers whom training knows, the rest of whose utterances it has{sizes}"


def points(value: float, digits: int = 2) -> str:
    """A difference of scores in points: 0.0271 → ``+2.71``."""
    return f"{100 * value:+.{digits}f}".replace("-", "−")


def paired(differences: dict[str, float]) -> Paired:
    """Mean, spread and Student's t interval of differences, one a speaker."""
    values = list(differences.values())
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Paired(differences, mean, None, None)
    std = statistics.stdev(values)
    if std < _NO_SPREAD:
        return Paired(differences, mean, std, None)
    half = float(t.ppf((1 + LEVEL) / 2, len(values) - 1)) * std / len(values) ** 0.5
    return Paired(differences, mean, std, (mean - half, mean + half))


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


def _by_speaker(joined: JoinedSummary) -> dict[str, dict[str, float]]:
    """``wa`` and ``ua`` → speaker → score over the speaker's test utterances, the mean over seeds."""
    table = pd.concat([run.speakers for run in joined.runs]).groupby("speaker", sort=True)[["wa", "ua"]].mean()
    return {name: {str(who): float(value) for who, value in table[name].items()} for name in ("wa", "ua")}


def _minus(one: dict[str, float], other: dict[str, float]) -> dict[str, float]:
    return {name: one[name] - other[name] for name in one}


def _columns(mean: dict[str, float], pooled: dict[str, float]) -> dict[str, Any]:
    return {f"{key}_mean": mean[key] for key in SCORES} | {f"{key}_pooled": pooled[key] for key in SCORES}
