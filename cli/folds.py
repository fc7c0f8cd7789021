"""`mfhca folds`: a protocol's folds, or those of a file, shown and written in the shapes that others read."""

from __future__ import annotations

from pathlib import Path

import click

from mfhca_cache.folds import Fold
from mfhca_cache.manifest import read_manifest
from mfhca_cache.splits.choose import ChosenFolds, folds_of
from mfhca_cache.splits.export import export_folds
from mfhca_cache.splits.imported import source_of
from mfhca_cache.splits.shapes import SHAPES

from .show import Screen, grid, quiet_and_json

_SHOWN = 5


@click.command()
@click.argument("manifest", type=click.Path(path_type=Path))
@click.argument("folds")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write FILE.csv, FILE.json or a folder.")
@click.option(
    "--format", "shape", type=click.Choice(SHAPES), default="mfhca", show_default=True, help="Whose shape to write."
)
@click.option("--classes", default="four-class", show_default=True, metavar="four-class|all|FILE.json")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the protocol session.")
@quiet_and_json
def folds(
    manifest: Path,
    folds: str,
    output: Path | None,
    shape: str,
    classes: str,
    seed: int,
    quiet: bool,
    as_json: bool,
) -> None:
    """Show how FOLDS cut the corpus in MANIFEST, or write them for other toolkits.

    FOLDS is a protocol (strict, test-selected, session); a CSV with the columns fold, utterance_id, part (train,
    validation or test), or the same as JSON; or a folder as EmoBox, s3prl or SpeechBrain publish it. Names that the
    manifest does not hold, and its rows that are in no fold, are counted.

    \b
    Example:
        mfhca folds manifests/iemocap.csv strict
        mfhca folds manifests/iemocap.csv strict -o folds.csv
        mfhca folds manifests/iemocap.csv session -o s3prl-folds --format s3prl
        mfhca folds manifests/iemocap.csv EmoBox/data/iemocap -o emobox.csv
    """
    screen = Screen(quiet, as_json)
    if shape != "mfhca" and output is None:
        raise click.UsageError(f"--format {shape} needs a folder to write to: -o FOLDER")
    chosen = folds_of(read_manifest(manifest), folds, classes, seed)
    rows = [
        [
            f"{fold.number} ({fold.name})",
            *(f"{len(ids):,}" for ids in (fold.train, fold.validation, fold.test)),
            _who(fold),
        ]
        for fold in chosen.folds
    ]
    screen.out.print(grid(f"{manifest} · {chosen.name}", ["fold", "train", "validation", "test", "tested"], rows))
    show_matching(screen, chosen)
    written = export_folds(output, chosen.folds, chosen.utterances, shape) if output is not None else []
    if written:
        what = str(written[0]) if len(written) == 1 else f"{len(written)} files to {output}"
        screen.out.print(f"Wrote {what}", markup=False, soft_wrap=True)
    items = [
        {
            "number": fold.number,
            "name": fold.name,
            "test_speakers": list(fold.test_speakers),
            "validation_speakers": list(fold.validation_speakers),
            "train": list(fold.train),
            "validation": list(fold.validation),
            "test": list(fold.test),
        }
        for fold in chosen.folds
    ]
    screen.json(
        {"name": chosen.name, "folds": items, "written": list(map(str, written)), **matching_json(chosen)},
    )


def _who(fold: Fold) -> str:
    """The test speakers, or how many they are."""
    names = fold.test_speakers
    return ", ".join(names) if len(names) <= 4 else f"{len(names)} speakers"


def show_matching(screen: Screen, chosen: ChosenFolds) -> None:
    """How a file's names were found in the manifest; nothing for a protocol."""
    matched = chosen.matched
    if matched is None:
        return
    file = matched.file
    lines = [f"Read as {file.shape}, SHA-256 {file.sha256[:16]}…", *file.notes]
    found = matched.mentions - len(matched.unknown)
    lines.append(f"{found:,} of {matched.mentions:,} names are in the manifest{_few(matched.unknown, '; not there: ')}")
    if matched.unnamed:
        of = chosen.utterances.set_index("utterance_id").loc[list(matched.unnamed), "class"].value_counts()
        labels = ", ".join(f"{name} {count:,}" for name, count in list(of.items())[:8])
        lines.append(f"{len(matched.unnamed):,} rows of the manifest are in no fold: {labels}")
    if matched.repeated:
        lines.append(f"{matched.repeated:,} names stand twice in one part of a fold; each is taken once")
    for line in lines:
        screen.out.print(line, markup=False, soft_wrap=True)


def _few(names: tuple[str, ...], before: str) -> str:
    if not names:
        return ""
    shown = [name if name.isprintable() else ascii(name) for name in names[:_SHOWN]]
    return before + ", ".join(shown) + (f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else "")


def matching_json(chosen: ChosenFolds) -> dict[str, object]:
    """The same as JSON values."""
    matched = chosen.matched
    if matched is None:
        return {"source": None}
    return {
        "source": {**source_of(matched.file), "notes": list(matched.file.notes)},
        "unknown": list(matched.unknown),
        "unnamed": list(matched.unnamed),
        "repeated": matched.repeated,
    }
