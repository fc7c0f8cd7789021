"""`mfhca cache export`: a cache's features as files for other programs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import click

from mfhca_cache.spec import settings
from mfhca_cache.storage.cache import open_cache
from mfhca_cache.storage.export import export_cache
from mfhca_cache.storage.writers import WRITERS

from .show import Screen, chosen_cache, quiet_and_json, size


@click.command()
@click.option("--cache", type=click.Path(path_type=Path), help="The cache's own folder.  [the one in cache/]")
@click.option("--format", "kind", type=click.Choice(list(WRITERS)), default="npy", show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="A new folder to write.")
@click.option("--features", metavar="NAME+NAME", help="Which features.  [all]")
@click.option("--split", metavar="SESSION|all", help="One session, or all.  [all]")
@quiet_and_json
def export(
    cache: Path | None,
    kind: str,
    output: Path,
    features: str | None,
    split: str | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Write features as NumPy, safetensors or Parquet files for other programs.

    One file a feature, one row a clip; clips.csv says whose each row is and how much of it is signal (for features of
    transcripts utterances.csv does), export.json what the features are. Only utterances that every feature holds are
    written, so that all files line up. The folder appears when it is whole. Parquet needs pyarrow: pip install
    'mfhca-cache[parquet]'.

    \b
    Example:
        mfhca cache export -o exported
        mfhca cache export --format parquet --features spectrogram --split session1 -o exported-session1
    """
    opened = open_cache(chosen_cache(cache))
    names = features.split("+") if features else None
    with Screen(quiet, as_json) as screen:
        report = export_cache(opened, output, kind, features=names, split=split, progress=screen.progress)
    reasons = Counter(reason.split(":")[0] for reason in report.left_out.values())
    if reasons:
        why = ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common())
        text = f"Note: {len(report.left_out):,} utterances are left out: {why}"
        screen.say(text, "yellow")
    for name in report.files:
        if opened.features[name].random_weights:
            note = f"Note: {name} has random weights; its features mean nothing"
            screen.say(note, "yellow")
    screen.say(
        f"Wrote {output}: {', '.join(report.files.values())}, with clips.csv or utterances.csv and export.json: "
        f"{report.clips:,} clips of {report.utterances:,} utterances, {size(report.bytes)}"
    )
    screen.json(settings(report))
