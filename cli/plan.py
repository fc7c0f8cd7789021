"""`mfhca plan`: what an extraction would take."""

from __future__ import annotations

from pathlib import Path

import click

from mfhca_cache.extraction.estimate import Estimate
from mfhca_cache.extraction.estimate import estimate as estimate_extraction
from mfhca_cache.spec import settings

from .extract import asked, extract
from .show import Screen, counted, duration, grid, shape_of, size

#: Options of `mfhca extract` that say who works on it, not what is made.
_WHO = ("jobs", "engine", "address")


@click.command(params=[option for option in extract.params if option.name not in _WHO])
@click.pass_context
def plan(
    ctx: click.Context,
    csv: Path | None,
    root: Path | None,
    cache: Path | None,
    encoder: str,
    revision: str | None,
    layers: str,
    pool: str | None,
    features: str,
    text_encoder: str | None,
    device: str,
    split: str | None,
    shard: tuple[int, int] | None,
    rows: str,
    pad: str,
    pre_emphasis: float,
    dtype: str,
    batch: int | None,
    precision: str,
    runtime: str,
    quiet: bool,
    as_json: bool,
) -> None:
    """Say what an extraction would take, without writing anything.

    Takes the options of `mfhca extract`, but for --jobs and --engine, and shows clips by split, bytes by feature, free
    space, and the time, estimated from a few real clips of the corpus that it decodes and computes. Exit status 1 if
    the disk is too small.

    \b
    Example:
        mfhca plan
        mfhca plan --encoder microsoft/wavlm-large --device cuda --split session1
    """
    found, spec = asked(
        csv, root, encoder, revision, layers, pool, features, text_encoder, rows, pad, pre_emphasis, dtype, precision
    )
    folder = cache or Path("cache") / found.corpus
    with Screen(quiet, as_json) as screen:
        result = estimate_extraction(
            found,
            folder,
            spec,
            split,
            shard=shard,
            device=device,
            batch=batch,
            runtime=runtime,
            progress=screen.progress,
        )
    _show(screen, result)
    screen.json({**settings(result), "fits": result.fits})
    if not result.fits:
        raise click.ClickException(
            f"{folder}: the extraction writes {size(result.bytes_left)} and {size(result.bytes_free)} are free; "
            "make room, or name a --cache on another disk"
        )


def _show(screen: Screen, found: Estimate) -> None:
    rows = [
        [item.name, f"{item.utterances:,}", duration(item.seconds), f"{item.clips:,}", f"{item.clips_left:,}"]
        for item in found.splits
    ]
    if len(rows) > 1:
        total = [sum(getattr(item, name) for item in found.splits) for name in ("utterances", "clips", "clips_left")]
        speech = duration(sum(item.seconds for item in found.splits))
        rows.append(["all", f"{total[0]:,}", speech, f"{total[1]:,}", f"{total[2]:,}"])
    screen.out.print(grid(None, ["split", "utterances", "speech", "clips", "clips to do"], rows))
    screen.out.print(
        grid(
            None,
            ["feature", "clip", "to do", "to write", "when whole", "each second"],
            [
                [
                    item.name,
                    shape_of(item.shape, item.dtype),
                    f"{item.count_left:,} of {counted(item.count, item.per)}",
                    size(item.bytes_left),
                    size(item.bytes),
                    f"{1 / item.seconds_each:,.1f} on {item.device}" if item.seconds_each else "",
                ]
                for item in found.features
            ],
        )
    )
    for item in found.features:
        if item.random_weights:
            screen.say(f"Note: {item.name} has random weights; its features mean nothing", "yellow")
    for note in found.notes:
        screen.say(f"Note: {note}", "yellow")
    place = f"{found.cache} ({'begun' if found.begun else 'new'})"
    if not found.bytes_left:
        screen.say(f"{place}: nothing to do, every shard is there already", "green")
        return
    verdict = "enough" if found.fits else "not enough"
    screen.say(f"{place}: {size(found.bytes_left)} to write, {size(found.bytes_free)} free: {verdict}")
    if found.seconds is not None:
        screen.say(
            f"About {duration(found.seconds)}: an estimate from {found.trial_clips} clips of this corpus, tried now"
        )
    screen.say("Nothing was written. Next: mfhca extract, with the same options")
