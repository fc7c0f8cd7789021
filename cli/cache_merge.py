"""`mfhca cache merge`: shards extracted on several machines → one cache."""

from __future__ import annotations

from pathlib import Path

import click

from mfhca_cache.spec import settings
from mfhca_cache.storage.merge import merge_caches

from .show import Screen, counted, duration, quiet_and_json, size


@click.command()
@click.argument("target", type=click.Path(path_type=Path))
@click.argument("sources", type=click.Path(path_type=Path), nargs=-1, required=True, metavar="SOURCE...")
@quiet_and_json
@click.pass_context
def merge(ctx: click.Context, target: Path, sources: tuple[Path, ...], quiet: bool, as_json: bool) -> None:
    """Take the shards of the caches SOURCE... into the cache TARGET.

    For shards that were extracted on several machines. TARGET may be a new folder. The caches must be of the same
    corpus, audio and settings; each shard is reread in full before it is taken in, and one that is there already is
    left as it is. Stop it any way you like: the same command goes on. Exit status 1 if a shard of a source does not
    verify.

    \b
    Example:
        mfhca cache merge cache/iemocap /mnt/a/cache/iemocap /mnt/b/cache/iemocap
    """
    with Screen(quiet, as_json) as screen:
        report = merge_caches(target, sources, progress=screen.progress)
    for note in report.notes:
        screen.say(f"Note: {note}", "yellow")
    for fault in report.faults:
        click.echo(f"Not taken: {fault}", err=True)
    if report.copied:
        text = f"took {counted(len(report.copied), 'shard')} ({size(report.bytes)})"
        text += f" in {duration(report.seconds)}"
    else:
        text = "took nothing"
    screen.say(f"{target}: {text}; {counted(report.there, 'shard')} there already")
    screen.say(f"Next: mfhca cache ls --cache {target}")
    screen.json(settings(report))
    if report.faults:
        raise click.ClickException(
            f"{counted(len(report.faults), 'shard')} left out, which did not verify; "
            "mend their caches with `mfhca cache repair --cache SOURCE` and `mfhca extract`, and merge again"
        )
