"""What an extraction did, and what lies in the cache behind it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mfhca_cache.extraction.part import Part
from mfhca_cache.extraction.run import Run
from mfhca_cache.extraction.work import Survey
from mfhca_cache.manifest import Rejected
from mfhca_cache.storage.commit import shard_receipt
from mfhca_cache.storage.layout import FeatureInfo, ShardRange


@dataclass(frozen=True)
class ExtractReport:
    """What a run of `extract` did, and what lies in the cache now.

    Attributes:
        cache: the cache's folder.
        features: names of the features asked for.
        splits: names of the splits asked for.
        utterances: rows of those splits; ok + rejected.
        rejected: utterances that hold no clips, with the reason.
        clips: clips of those splits that lie in the cache now.
        new_clips: clips that this run computed.
        new_texts: utterances whose transcripts this run encoded.
        new_shards: shards that this run published, over all features.
        bytes_written: by this run.
        seconds: that it took.
        notes: what a person should know, such as corrected labels.
        shard: k (or several) and n where this run was part k of n; all the counts are then of that part.
        covered: the shards that it answers for, as ``feature/shard``.
    """

    cache: Path
    features: tuple[str, ...]
    splits: tuple[str, ...]
    utterances: int
    rejected: tuple[Rejected, ...]
    clips: int
    new_clips: int
    new_texts: int
    new_shards: int
    bytes_written: int
    seconds: float
    notes: tuple[str, ...] = ()
    shard: Part | None = None
    covered: tuple[str, ...] = ()

    @property
    def ok(self) -> int:
        """Utterances whose clips are in the cache."""
        return self.utterances - len(self.rejected)


def report_of(
    run: Run, survey: Survey, covered: list[tuple[FeatureInfo, ShardRange]], notes: list[str]
) -> ExtractReport:
    """What the covered shards hold now, and what the run did."""
    plan, table = run.plan, run.plan.utterances
    inside = np.zeros(plan.clips + 1, dtype=np.int64)
    reasons: dict[str, str] = {}
    wordless: dict[str, str] = {}
    of_clips = any(info.per == "clip" for info, _ in covered)
    for info, shard in covered:
        # Without a transcript an utterance still has its clips, and these alone are counted where there are any.
        aside = info.per == "utterance" and of_clips
        lost = wordless if aside else reasons
        first, stop = plan.clips_of(info, shard)
        inside[first + 1 : stop + 1] |= not aside
        seen = survey.see(info, shard)
        # A receipt that is damaged, or of other audio, is an error that says so.
        if not seen.whole and shard_receipt(run.folder, plan, info, shard) is None:
            ids = plan.sources(info, shard)
            lost |= dict.fromkeys(set(ids) - set(lost), "missing: none of its shard's files can be read")
        else:
            lost |= {item.path: item.reason for item in seen.rejected}
    if wordless:
        example = f"such as {min(wordless)} ({wordless[min(wordless)]})"
        notes = [*notes, f"{len(wordless)} utterance(s) have no features of their text, {example}"]
    # An utterance may lie in two parts: each counts the clips that are its own.
    before = np.cumsum(inside)
    clips = before[(table["first_clip"] + table["clips"]).to_numpy()] - before[table["first_clip"].to_numpy()]
    asked = table["utterance_id"][clips > 0]
    return ExtractReport(
        cache=run.folder,
        features=(),
        splits=(),
        utterances=len(asked),
        rejected=tuple(Rejected(name, reasons[name]) for name in asked if name in reasons),
        clips=int(clips[(~table["utterance_id"].isin(list(reasons))).to_numpy()].sum()),
        new_clips=run.new_clips,
        new_texts=run.new_texts,
        new_shards=run.new_shards,
        bytes_written=run.bytes_written,
        seconds=0.0,
        notes=tuple(dict.fromkeys(notes)),
        covered=tuple(f"{info.name}/{shard.name}" for info, shard in covered),
    )
