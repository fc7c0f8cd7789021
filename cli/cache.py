"""`mfhca cache`: what lies in a cache, whether it is sound, and what is taken out, joined or handed on."""

from __future__ import annotations

from pathlib import Path

import click

from mfhca_cache.spec import settings
from mfhca_cache.storage.check import check_cache
from mfhca_cache.storage.command import extract_command
from mfhca_cache.storage.descriptions import read_feature, read_plan
from mfhca_cache.storage.maintain import Repair, holding
from mfhca_cache.storage.maintain import remove as remove_feature
from mfhca_cache.storage.maintain import repair as repair_cache

from .cache_export import export
from .cache_ls import ls
from .cache_merge import merge
from .show import Screen, chosen_cache, counted, quiet_and_json, size

_CACHE = click.option("--cache", type=click.Path(path_type=Path), help="The cache's own folder.  [the one in cache/]")


@click.group()
def cache() -> None:
    """List, verify, repair, merge and export caches.

    Every one of these takes --quiet and --json, and has a --help of its own.

    \b
    Example:
        mfhca cache ls
        mfhca cache verify --deep
        mfhca cache merge cache/iemocap /mnt/other/cache/iemocap
    """


for _command in (ls, merge, export):
    cache.add_command(_command)


@cache.command()
@_CACHE
@click.option("--deep", is_flag=True, help="Reread every byte, the arrays too.")
@quiet_and_json
@click.pass_context
def verify(ctx: click.Context, cache: Path | None, deep: bool, quiet: bool, as_json: bool) -> None:
    """Check what is in a cache, and list every fault.

    Looks at receipts, sizes, extents and the digests of everything but the arrays; --deep rereads every byte. What is
    not extracted yet is no fault, nor are files that belong to nothing. Exit status 1 if there is a fault.

    \b
    Example:
        mfhca cache verify --deep
        mfhca cache verify --cache cache/iemocap --json
    """
    folder = chosen_cache(cache)
    with Screen(quiet, as_json) as screen:
        found = check_cache(folder, deep=deep, progress=screen.progress)
    for fault in found.faults:
        click.echo(fault.message, err=True)
    notes = {
        "uncommitted": "a shard without a receipt, which does not exist",
        "temporary": "left by a writer that died",
    }
    for stray in found.strays:
        why = notes.get(stray.kind, "no part of the cache")
        screen.say(f"Note: {stray.path}: {why}", "yellow")
    depth = f"every byte of {size(found.bytes)} reread" if deep else "arrays not reread (--deep does)"
    state = f"{len(found.faults)} at fault" if found.faults else "no fault"
    screen.say(
        f"{folder}: {counted(found.shards, 'shard')}, {depth}: {state}", style="bold red" if found.faults else "green"
    )
    screen.json({**settings(found), "cache": str(folder), "deep": deep, "sound": not found.faults})
    if any(fault.kind == "damaged" for fault in found.faults) or any(s.kind != "unknown" for s in found.strays):
        verb = "drops what is damaged" if found.faults else "removes those"
        screen.say(f"Next: mfhca cache repair --cache {folder} ({verb})")
    if found.faults:
        ctx.exit(1)


@cache.command()
@_CACHE
@click.option("--dry-run", is_flag=True, help="Say what would be removed, and remove nothing.")
@quiet_and_json
@click.pass_context
def repair(ctx: click.Context, cache: Path | None, dry_run: bool, quiet: bool, as_json: bool) -> None:
    """Drop what does not verify, and say what to extract again.

    Rereads every byte. A damaged shard goes with its receipt, and so does what killed writers left; what verifies is
    never touched, nor what another process is writing. Exit status 1 if a fault remains that only a person can mend.

    \b
    Example:
        mfhca cache repair --dry-run
        mfhca cache repair --cache cache/iemocap
    """
    folder = chosen_cache(cache)
    with Screen(quiet, as_json) as screen:
        done = repair_cache(folder, dry_run=dry_run, progress=screen.progress)
    _show_repair(screen, folder, done)
    commands = _again(folder, done)
    screen.json({**settings(done), "cache": str(folder), "commands": commands})
    if commands:
        screen.out.print("Would be extracted again by:" if dry_run else "Extract again:")
    for command in commands:
        screen.say(f"  {command}")
    if done.left:
        ctx.exit(1)


def _show_repair(screen: Screen, folder: Path, done: Repair) -> None:
    for item in done.removed:
        screen.say(
            f"{'Would remove' if done.dry_run else 'Removed'} {item.path}: {item.reason.removeprefix(f'{item.path}: ')}"
        )
    for name in done.busy:
        screen.say(f"Left alone: {name}, which another process is writing", "yellow")
    for path in done.unknown:
        screen.say(f"Left alone: {path}, which is no part of the cache", "yellow")
    for fault in done.left:
        click.echo(f"{_LEFT[fault.kind]}: {fault.message}", err=True)
    if done.removed:
        screen.say(
            f"{folder}: {counted(len(done.removed), 'file')} {'would be removed' if done.dry_run else 'removed'}"
        )
    elif not done.left and not done.busy:
        screen.say(f"{folder}: nothing to repair; everything that is there verifies", "green")


_LEFT = {
    "foreign": "Left: intact, but of another plan (put its cache.json back, or let `mfhca extract` replace it)",
    "unreadable": "Left: it could not be read (the disk or the permissions)",
    "description": "Left to you",
    "damaged": "Left",
}


def _again(folder: Path, done: Repair) -> list[str]:
    """The commands that bring back what was dropped, each once; an encoder's brings the spectrogram's back too."""
    plan = read_plan(folder)
    infos = {name: read_feature(folder, name) for name in done.again}
    encoders = {split for name, splits in done.again.items() if infos[name].source for split in splits}
    commands = [
        extract_command(folder, plan, infos[name], split)
        for name, splits in done.again.items()
        for split in splits
        if infos[name].source or split not in encoders
    ]
    return list(dict.fromkeys(commands))


@cache.command()
@click.argument("feature")
@_CACHE
@click.option("--split", metavar="SESSION", help="Only this split of it.  [all of it]")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@quiet_and_json
def rm(feature: str, cache: Path | None, split: str | None, yes: bool, quiet: bool, as_json: bool) -> None:
    """Remove FEATURE, or one split of it, from a cache.

    Asks first. Receipts go before their shards, so that the cache is valid whenever this is stopped. Refuses while
    another process writes the feature.

    \b
    Example:
        mfhca cache rm wavlm-large --cache cache/iemocap
        mfhca cache rm hubert-base-ls960 --split session1 --yes
    """
    folder = chosen_cache(cache)
    target = holding(folder, feature, split)
    what = f"{feature} of {split}" if split else feature
    if not yes:
        if as_json:
            raise click.UsageError("--json asks nothing; say --yes")
        click.confirm(
            f"Remove {what} from {folder} ({counted(len(target.shards), 'shard')}, {size(target.bytes)})?", abort=True
        )
    with Screen(quiet, as_json) as screen:
        gone, left = remove_feature(folder, feature, split, progress=screen.progress)
    screen.say(f"Removed {what} from {folder}: {counted(len(gone.shards), 'shard')}, {size(gone.bytes)}")
    for path in left:
        screen.say(f"Left: {path}, which is no part of the cache", "yellow")
    screen.json({**settings(gone), "cache": str(folder), "left": [str(path) for path in left]})
