"""`mfhca leak-check`: what the test sets of folds share with training, counted, and a plain verdict."""

from __future__ import annotations

from pathlib import Path

import click
from rich.table import Table
from rich.text import Text

from mfhca_cache.manifest import read_manifest
from mfhca_cache.splits.choose import folds_of
from mfhca_cache.splits.leaks import LeakReport, find_leaks

from .folds import matching_json, show_matching
from .show import Screen, grid, quiet_and_json

_KINDS = {"speaker": "speaker", "same": "itself", "audio": "audio", "recording": "recording", "text": "text"}
_COLOURS = {"Leak": "bold red", "No leak": "bold green", "Optimistic": "bold yellow"}


@click.command()
@click.argument("manifest", type=click.Path(path_type=Path))
@click.argument("folds")
@click.option("--classes", default="four-class", show_default=True, metavar="four-class|all|FILE.json")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the protocol session.")
@quiet_and_json
def leak_check(manifest: Path, folds: str, classes: str, seed: int, quiet: bool, as_json: bool) -> None:
    """Count what the test sets of FOLDS share with training.

    FOLDS is a CSV or JSON file, a folder as EmoBox, s3prl or SpeechBrain publish it, or a protocol (strict,
    test-selected, session). Speakers are those of MANIFEST. Ends with status 1 where test speakers, test utterances
    or their audio are in training.

    \b
    Example:
        mfhca leak-check manifests/iemocap.csv EmoBox/data/iemocap
        mfhca leak-check manifests/ravdess.csv strict
        mfhca leak-check manifests/mine.csv folds.csv --json
    """
    screen = Screen(quiet, as_json)
    chosen = folds_of(read_manifest(manifest), folds, classes, seed)
    report = find_leaks(chosen.utterances, chosen.folds)
    screen.out.print(f"{manifest} · {chosen.name}", style="bold", markup=False, soft_wrap=True)
    screen.out.print(f"{', '.join(_KINDS.values())}: test utterances that share theirs with training")
    screen.out.print(_sizes(report))
    if any(report.total("with_validation", kind) for kind in _KINDS if kind != "text"):
        screen.out.print("The same with validation, which chooses the epoch")
        screen.out.print(_shared(report))
    show_matching(screen, chosen)
    missing = [
        name for name, there in (("recordings", report.has_recordings), ("texts", report.has_texts)) if not there
    ]
    if missing:
        text = f"The manifest has no {' and no '.join(missing)}: what is shared there cannot be counted."
        screen.out.print(text, markup=False, soft_wrap=True)
    if report.retested:
        text = f"{report.retested:,} of {report.tested:,} utterances are tested in more than one fold."
        screen.out.print(text, markup=False, soft_wrap=True)
    screen.out.print()
    for line in report.verdict():
        kind, colon, rest = line.partition(":")
        coloured = Text.assemble((kind + colon, _COLOURS[kind]), rest) if kind in _COLOURS else Text(line)
        screen.out.print(coloured, soft_wrap=True)
    screen.json({"name": chosen.name, **matching_json(chosen), **report.to_json()})
    if report.leaky:
        click.get_current_context().exit(1)


def _sizes(report: LeakReport) -> Table:
    columns = ["fold", "train", "valid", "test", *_KINDS.values()]
    rows: list[list[str | Text]] = [
        [
            f"{fold.number} ({fold.name})",
            *(f"{count:,}" for count in (fold.train, fold.validation, fold.test)),
            *(_cell(getattr(fold.with_training, kind), kind) for kind in _KINDS),
        ]
        for fold in report.folds
    ]
    tests = f"{sum(fold.test for fold in report.folds):,}"
    rows.append(["all", "", "", tests, *(_cell(report.total("with_training", kind), kind) for kind in _KINDS)])
    return grid(None, columns, rows)


def _shared(report: LeakReport) -> Table:
    rows: list[list[str | Text]] = [
        [f"{fold.number} ({fold.name})", *(_cell(getattr(fold.with_validation, kind)) for kind in _KINDS)]
        for fold in report.folds
    ]
    rows.append(["all", *(_cell(report.total("with_validation", kind)) for kind in _KINDS)])
    return grid(None, ["fold", *_KINDS.values()], rows)


def _cell(count: int, kind: str = "") -> Text:
    """A count, red where it is a leak, and a dot for none."""
    leak = count and kind in ("speaker", "same", "audio")
    return Text(f"{count:,}" if count else "·", style="bold red" if leak else "")
