"""`mfhca manifest`: a corpus folder → an utterance table, and what was found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pandas as pd
from rich.text import Text

from mfhca_cache.corpora import CORPORA, read_corpus
from mfhca_cache.corpora.iemocap_counts import compare_with_published, published_table
from mfhca_cache.errors import LabelError
from mfhca_cache.labels import FOUR_CLASSES, LABEL_NAMES, ClassMap, class_map
from mfhca_cache.manifest import Manifest, count_table, write_manifest
from mfhca_cache.progress import Progress

from .show import Screen, duration, grid, quiet_and_json, rejections


@click.command()
@click.argument("corpus", type=click.Choice(list(CORPORA)))
@click.argument("root", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="CSV to write.  [manifests/CORPUS.csv]")
@quiet_and_json
def manifest(corpus: str, root: Path, output: Path | None, quiet: bool, as_json: bool) -> None:
    """Read the corpus in folder ROOT and write its utterance table.

    Every file is opened, checked against its header and hashed. Files that cannot be used are listed with the reason
    and left out. CORPUS `table` is any CSV with the columns path, speaker, label.

    \b
    Example:
        mfhca manifest iemocap /data/IEMOCAP_full_release
        mfhca manifest table /data/mine/utterances.csv -o manifests/mine.csv
    """
    path = output or Path("manifests") / f"{corpus}.csv"
    if path.suffix.lower() != ".csv":
        raise click.UsageError(f"--output {path}: expected a name that ends in .csv")
    with Screen(quiet, as_json) as screen:
        found = read_corpus(
            corpus,
            root,
            lambda done, total: screen.progress(Progress(f"reading {root}", done, total, "files")),
        )
        write_manifest(found, path)
    counts = count_table(found.utterances, _classes(found))
    differences = compare_with_published(found.utterances) if corpus == "iemocap" else []
    _show(screen, found, counts, differences, path)
    screen.json(_as_json(found, counts, differences, path))


def _classes(found: Manifest) -> ClassMap:
    """The four classes, or every raw label where none of them belongs to the four."""
    labels = found.utterances["label"]
    try:
        return class_map("four-class", found.corpus, labels)
    except LabelError:
        return class_map("all", found.corpus, labels)


def _show(screen: Screen, found: Manifest, counts: pd.DataFrame, differences: list[str], path: Path) -> None:
    table = found.utterances
    screen.out.print(_count_grid(found, counts))
    other = table["label"].map(lambda label: LABEL_NAMES.get(found.corpus, {}).get(label, label)).value_counts()
    labels = ", ".join(f"{name} {count:,}" for name, count in other.items())
    screen.out.print(f"Raw labels: {labels}", markup=False, soft_wrap=True)
    screen.out.print(
        f"{len(table):,} utterances of {table['speaker'].nunique()} speakers, "
        f"{duration(table['seconds'].sum())}, {table['seconds'].min():.2f} to {table['seconds'].max():.2f} s each"
    )
    if found.corpus == "iemocap":
        if differences:
            screen.out.print(f"\n[bold yellow]{len(differences)} differences from the published counts[/]")
            for line in differences:
                screen.out.print(f"  {line}", markup=False)
        else:
            screen.out.print("[green]No difference from the published counts (5,531 utterances in four classes).[/]")
    rejections(screen, found.rejected, "and left out:")
    screen.out.print(f"\nWrote {path}. Next: mfhca extract --manifest {path}", markup=False, soft_wrap=True)


def _count_grid(found: Manifest, counts: pd.DataFrame) -> Any:
    """Counts by session and class; for IEMOCAP as found / published."""
    published = published_table().to_dict("index") if found.corpus == "iemocap" else {}
    rows = []
    for name, row in counts.iterrows():
        cells = [Text(f"{value:,}") for value in row]
        if name in published:
            cells = [_beside(value, published[name][column]) for column, value in row.items()]
        rows.append([Text(str(name)), *cells])
    what = "the four classes" if set(counts.columns) >= set(FOUR_CLASSES) else "each label"
    title = f"{found.corpus}: utterances of {what}" + (", found / published" if published else "")
    return grid(title, [str(counts.index.name), *map(str, counts.columns)], rows)


def _beside(found: int, published: int) -> Text:
    """``229 / 229``, and in colour where they differ."""
    return Text(f"{found:,} / {published:,}", style="" if found == published else "bold yellow")


def _as_json(found: Manifest, counts: pd.DataFrame, differences: list[str], path: Path) -> dict[str, Any]:
    return {
        "corpus": found.corpus,
        "root": str(found.root),
        "csv": str(path),
        "utterances": len(found.utterances),
        "speakers": int(found.utterances["speaker"].nunique()),
        "seconds": float(found.utterances["seconds"].sum()),
        "counts": {str(name): {str(k): int(v) for k, v in row.items()} for name, row in counts.iterrows()},
        "differences": differences,
        "rejected": [{"path": item.path, "reason": item.reason} for item in found.rejected],
    }
