"""`mfhca demo`: the whole path on a small generated corpus, by the real commands."""

from __future__ import annotations

import shlex
import shutil
import time
from pathlib import Path

import click

from mfhca_cache.corpora.synthetic import looks_like, write_corpus
from mfhca_cache.storage.cache import open_cache
from mfhca_cache.training.crossval import run_name
from mfhca_cache.training.job import prepare
from mfhca_cache.training.options import TrainOptions

from .show import Screen, duration, quiet_and_json

#: As many as ten folds on two cores take in two minutes.
UTTERANCES = 8  # a speaker
EPOCHS = 4


@click.command()
@click.option("--folder", type=click.Path(path_type=Path), default="demo", show_default=True, help="Where it all goes.")
@quiet_and_json
@click.pass_context
def demo(ctx: click.Context, folder: Path, quiet: bool, as_json: bool) -> None:
    """Generate a small corpus and take it the whole way: manifest, cache, ten folds, report.

    The voices are synthetic and the encoder is random: it shows how things work, not how good they are.

    \b
    Example:
        mfhca demo
    """
    started = time.monotonic()
    screen = Screen(quiet, as_json)
    corpus, table, cache, runs = (folder / name for name in ("corpus", "manifests/synthetic.csv", "cache", "runs"))
    if not looks_like(corpus):
        if corpus.exists():
            raise click.UsageError(f"{corpus} is there and was not written by the demo; choose another --folder")
        screen.out.print(f"Writing a corpus of synthetic voices in IEMOCAP's folder layout to [bold]{corpus}[/] …")
        partial = folder / ".corpus.partial"
        shutil.rmtree(partial, ignore_errors=True)
        write_corpus(partial, UTTERANCES)
        partial.rename(corpus)
    run_command(ctx, screen, "manifest", "synthetic", str(corpus), "-o", str(table))
    run_command(ctx, screen, "extract", "--manifest", str(table), "--cache", str(cache), "--encoder", "random-tiny")
    options = TrainOptions(preset="quick", epochs=EPOCHS)
    settings = ["--preset", options.preset, "--epochs", str(EPOCHS)]
    run_command(ctx, screen, "train", "--cache", str(cache), "--runs", str(runs), "--fold", "all", *settings)
    opened = open_cache(cache)
    run = runs / run_name(opened, options, prepare(opened, options, "cpu").roles)
    run_command(ctx, screen, "report", str(run), as_json=as_json)
    screen.out.print(f"\n[bold green]Done in {duration(time.monotonic() - started)}.[/] Everything lies in {folder}/.")
    screen.out.print(
        "\nNow with your own corpus (iemocap, emodb, ravdess, cremad, or table for any CSV):\n\n"
        "    mfhca manifest iemocap /data/IEMOCAP_full_release\n"
        "    mfhca extract\n"
        "    mfhca train --fold all\n\n"
        "`mfhca extract` uses facebook/hubert-base-ls960; each command's --help says more.",
        soft_wrap=True,
    )


def run_command(ctx: click.Context, screen: Screen, *words: str, as_json: bool = False) -> None:
    """Run a command of this group as if it had been typed, after showing it."""
    screen.out.print(f"\n[bold cyan]$ mfhca {shlex.join(words)}[/]", soft_wrap=True)
    group = ctx.find_root().command
    if not isinstance(group, click.Group):
        raise click.UsageError("the demo runs as a command of mfhca")
    extra = ["--json"] if as_json else ["--quiet"] if screen.silent else []
    status = group.main([*words, *extra], prog_name="mfhca", standalone_mode=False)
    if status:
        ctx.exit(status)
