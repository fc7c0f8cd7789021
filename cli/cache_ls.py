"""`mfhca cache ls`: what is in a cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.text import Text

from mfhca_cache.errors import CacheError
from mfhca_cache.spec import settings
from mfhca_cache.storage.command import extract_command
from mfhca_cache.storage.inventory import FeatureListing, Listing, list_cache
from mfhca_cache.storage.layout import FeatureInfo

from .show import Screen, counted, duration, grid, quiet_and_json, shape_of, size


@click.command()
@click.option("--cache", "folder", type=click.Path(path_type=Path), help="One cache's folder.  [all in cache/]")
@quiet_and_json
@click.pass_context
def ls(ctx: click.Context, folder: Path | None, quiet: bool, as_json: bool) -> None:
    """Show what is in a cache, or in all those in cache/.

    Features with the encoder and its commit, clips present of those planned, size, and what is missing by split.
    Exit status 1 if a cache cannot be read.

    \b
    Example:
        mfhca cache ls
        mfhca cache ls --cache /data/caches/iemocap --json
    """
    folders = [folder] if folder else sorted(path.parent for path in Path("cache").glob("*/cache.json"))
    if not folders:
        raise click.UsageError("no cache in cache/; `mfhca extract` makes one, or name one with --cache DIR")
    screen, values, failed = Screen(quiet, as_json), [], False
    for number, path in enumerate(folders):
        if number:
            screen.out.print()
        try:
            found = list_cache(path)
        except CacheError as error:
            failed = True
            click.echo(f"Error: {error}", err=True)
            continue
        _show_listing(screen, found)
        values.append(_listing_json(found))
    screen.json(values)
    if failed:
        ctx.exit(1)


def _show_listing(screen: Screen, found: Listing) -> None:
    plan, table = found.plan, found.plan.utterances
    screen.out.print(Text.assemble((plan.corpus, "bold"), f"  {found.path}  {size(found.bytes)}"), soft_wrap=True)
    kinds = "the four classes" if plan.rows == "four-class" else "all rows"
    padding = "padding is signal" if plan.clip.pad == "audio" else "features are padded"
    splits = counted(len(plan.splits), "split")
    screen.out.print(
        f"{len(table):,} utterances of {table['speaker'].nunique()} speakers ({kinds}), {duration(found.seconds)} of "
        f"speech, {plan.clips:,} clips of {plan.clip.seconds:g} s ({padding}), {splits}",
        soft_wrap=True,
    )
    rows: list[list[str | Text]] = [
        [
            item.info.name,
            shape_of(item.info.shape, item.info.dtype),
            f"{item.rows:,} of {item.planned:,}",
            size(item.bytes),
            _state(item),
        ]
        for item in found.features
    ]
    if rows:
        screen.out.print(grid(None, ["feature", "clip", "there", "size", ""], rows))
    else:
        screen.out.print("No feature yet.")
    for item in found.features:
        _show_feature(screen, found, item)
    for fault in found.faults:
        screen.say(f"Damaged: {fault.message}", "bold red")


def _show_feature(screen: Screen, found: Listing, item: FeatureListing) -> None:
    """What the table has no room for: the encoder, what is missing, and what must be said."""
    name = item.info.name
    if item.info.source:
        screen.say(f"{name}: {'text encoder' if item.info.kind == 'text' else 'encoder'} {_origin(item.info)}")
    if item.info.random_weights:
        screen.say(f"{name}: random weights; its features mean nothing", "yellow")
    if item.damaged:
        screen.say(
            f"{name}: {counted(item.damaged, 'shard')} not as the receipt says; see `mfhca cache verify`", "bold red"
        )
    if item.missing:
        lacks = ", ".join(f"{split} ({counted(count, 'shard')})" for split, count in item.missing.items())
        screen.say(f"{name}: not extracted yet: {lacks}")
        only = next(iter(item.missing)) if len(item.missing) == 1 else None
        screen.say(f"  {extract_command(found.path, found.plan, item.info, only)}")


def _origin(info: FeatureInfo) -> str:
    """``facebook/hubert-base-ls960 at commit 0123456789ab, HubertModel, layers last``."""
    source, parts = info.source, [str(info.source.get("name", "?"))]
    if source.get("commit"):
        parts[0] += f" at commit {str(source['commit'])[:12]}"
    if source.get("revision"):
        parts[0] += f" (revision {source['revision']})"
    if source.get("architecture"):
        parts.append(str(source["architecture"]))
    parts += [f"{key} {_plain(info.settings[key])}" for key in ("layers", "pool") if info.settings.get(key)]
    return ", ".join(parts)


def _plain(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _state(item: FeatureListing) -> Text:
    if item.damaged:
        return Text("damaged", style="bold red")
    return Text("complete", style="green") if item.complete else Text("incomplete", style="yellow")


def _listing_json(found: Listing) -> dict[str, Any]:
    plan = found.plan
    return {
        "cache": str(found.path),
        "corpus": plan.corpus,
        "rows": plan.rows,
        "clip": settings(plan.clip),
        "utterances": len(plan.utterances),
        "speakers": int(plan.utterances["speaker"].nunique()),
        "seconds": found.seconds,
        "clips": plan.clips,
        "splits": [split.name for split in plan.splits],
        "bytes": found.bytes,
        "features": [
            {
                **settings(item.info),
                "fingerprint": item.info.fingerprint,
                "rows": item.rows,
                "planned": item.planned,
                "rejected": item.rejected,
                "shards": item.shards,
                "missing": item.missing,
                "damaged": item.damaged,
                "bytes": item.bytes,
                "complete": item.complete,
            }
            for item in found.features
        ],
        "faults": [fault.message for fault in found.faults],
    }
