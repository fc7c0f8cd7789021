"""`mfhca train`: a cache → trained folds in a run's folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click
from click.core import ParameterSource
from rich.text import Text

from mfhca_cache.distributed.train import TrainItem, train_on_ray
from mfhca_cache.folds import CROSS_CORPUS, PROTOCOLS, Fold, choose_folds
from mfhca_cache.models import MODELS
from mfhca_cache.reporting.joined import join
from mfhca_cache.reporting.summary import summarise, write_report
from mfhca_cache.storage.cache import open_cache
from mfhca_cache.training.changes import parse_changes
from mfhca_cache.training.crossval import cross_validate, has_fold, run_name
from mfhca_cache.training.job import Job, check_folds, prepare
from mfhca_cache.training.options import PRESETS, TrainOptions
from mfhca_cache.training.seeds import of_seed, seed_folder

from .engine import check_engine, engine_options
from .report import show_joined, show_summary
from .show import Screen, chosen_cache, counted, quiet_and_json
from .training import check_model, check_name, machine_options, parse_jobs


@click.command()
@click.option("--cache", type=click.Path(path_type=Path), help="The cache's own folder.  [the one in cache/]")
@click.option("--runs", type=click.Path(path_type=Path), default="runs", show_default=True, help="Where runs go.")
@click.option(
    "--model",
    default="mfhca",
    show_default=True,
    metavar="NAME|MODULE:CLASS",
    help=f"{', '.join(MODELS)} (docs/models.md), or an nn.Module of your own, such as my_package.my_module:MyModel "
    "(docs/own-model.md).",
)
@click.option(
    "--features",
    default="",
    metavar="NAMES",
    help="Of mfhca spectrogram+encoder, spectrogram, or encoder; name the encoder's feature where the cache has "
    "several. svm, ridge and a model of your own take any features of the cache, joined by +.  [all that the model "
    "can be given]",
)
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    help="Optimiser, epochs.  [paper for mfhca, frozen for every other model]",
)
@click.option("--learning-rate", type=float, help="[the preset's]")
@click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="NAME=VALUE",
    help="Change the preset's training or model, as in --set rate=8 --set channels=16,32,64; may be repeated.",
)
@click.option(
    "--protocol", type=click.Choice(PROTOCOLS), default="strict", show_default=True, help="How folds are cut."
)
@click.option(
    "--folds",
    type=click.Path(path_type=Path),
    metavar="FILE|FOLDER",
    help="Folds from elsewhere, instead of a protocol: CSV, JSON, or a folder of EmoBox, s3prl or SpeechBrain.",
)
@click.option(
    "--test-cache",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Train on the cache's corpus and test on this one's, which has the same features (docs/protocols.md).",
)
@click.option("--allow-leaks", is_flag=True, help="Train such folds although their test set is known in training.")
@click.option("--fold", default="all", show_default=True, metavar="N|SPEAKER|all", help="4 and 2F are one on IEMOCAP.")
@click.option("--classes", default="four-class", show_default=True, metavar="four-class|all|FILE.json")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--epochs", type=click.IntRange(1), help="At most.  [the preset's]")
@machine_options
@click.option(
    "--name",
    help="The run's name.  [CORPUS-MODEL-FEATURES-PROTOCOL-PRESET] A seed K other than 0 has -seedK behind it, always.",
)
@click.option(
    "--seeds",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    metavar="N",
    help="Train N seeds, from --seed on, each a run of its own, and join their scores.",
)
@engine_options
@quiet_and_json
def train(
    cache: Path | None,
    runs: Path,
    model: str,
    features: str,
    preset: str | None,
    learning_rate: float | None,
    changes: tuple[str, ...],
    protocol: str,
    folds: Path | None,
    test_cache: Path | None,
    allow_leaks: bool,
    fold: str,
    classes: str,
    seed: int,
    epochs: int | None,
    device: str,
    jobs: str,
    threads: int | None,
    precision: str,
    name: str | None,
    seeds: int,
    engine: str,
    address: str | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Train folds from a cache, and show the run's scores.

    Each fold is stored when it is done: stop it any way you like, and the same command goes on. `strict` chooses the
    epoch on a validation speaker; `test-selected` chooses it on the test speaker and is marked optimistic everywhere.
    Folds of others come with `--folds`, and are refused where their test speakers are in training. `--test-cache`
    trains on one corpus and tests on another.

    Folds are trained side by side: on a CPU in as many processes as cores and memory allow, each with the same threads
    however many there are; on a GPU in turns. A single fold on many cores is faster with `--threads`.

    \b
    Example:
        mfhca train --fold 4
        mfhca train --fold all --protocol test-selected --seed 1 --name peeking   # runs/peeking-seed1
        mfhca train --fold all --seeds 5
        mfhca train --fold all --preset frozen --set rate=8 --set channels=16,32,64
        mfhca train --fold all --seeds 5 --engine ray --address head-node:6379
        mfhca train --folds EmoBox/data/iemocap
        mfhca train --cache cache/ravdess --test-cache cache/emodb --seeds 5
        mfhca train --set spectrogram_network=alexnet --set fusion=co-attention   # Table II without MF and HCA
        mfhca train --model co-attention --features spectrogram+mfcc+wav2vec2-base
        mfhca train --model ridge --features log-mel-128
        mfhca train --model my_module:MyModel --features encoder
    """
    check_engine(engine, address, jobs=jobs != "auto")
    check_model(model)
    chosen_by_user = click.get_current_context().get_parameter_source("protocol") == ParameterSource.COMMANDLINE
    if folds is not None and chosen_by_user:
        raise click.UsageError("--folds and --protocol both say how folds are cut; give one of them")
    if test_cache is not None and (folds is not None or chosen_by_user):
        raise click.UsageError("--test-cache says what is tested; --folds and --protocol are of one corpus alone")
    if test_cache is not None and engine == "ray":
        raise click.UsageError("--test-cache is a single fold a seed, trained on this machine; leave --engine ray out")
    if allow_leaks and folds is None:
        raise click.UsageError("--allow-leaks is for folds from elsewhere; name them with --folds")
    opened = open_cache(chosen_cache(cache))
    tested = None if test_cache is None else open_cache(test_cache)
    options = TrainOptions(
        model=model,
        features=features,
        preset=preset or "",
        protocol=protocol if tested is None else CROSS_CORPUS,
        classes=classes,
        seed=seed,
        epochs=epochs,
        learning_rate=learning_rate,
        precision=precision,
        threads=threads,
        folds=None if folds is None else str(folds),
        allow_leaks=allow_leaks,
        changes=parse_changes(changes, model),
    )
    # With Ray the nodes have the device, and this machine need not.
    here = "cpu" if engine == "ray" else device
    prepared = [prepare(opened, replace(options, seed=seed + number), here, tested) for number in range(seeds)]
    folds_of = {job.options.seed: choose_folds(job.folds, fold) for job in prepared}
    for job in prepared:
        check_folds(job, folds_of[job.options.seed])
    check_name(name)
    plain = runs / (name or run_name(opened, options, prepared[0].roles, test=tested.corpus if tested else ""))
    folders = [seed_folder(plain, job.options.seed) for job in prepared]
    with Screen(quiet, as_json) as screen:
        for line in _caveats([item for chosen in folds_of.values() for item in chosen]):
            screen.err.print(Text.assemble(("Caution: ", "bold yellow"), line))
        for job, run in zip(prepared, folders, strict=True):
            features, number = " + ".join(job.roles.values()), job.options.seed
            screen.err.print(
                f"[bold]{run}[/]: {features}, protocol {options.protocol}, preset {options.preset}, seed {number}"
            )
            for item in folds_of[number]:
                there = "done before; " if has_fold(run, item.number) else ""
                screen.err.print(f"  fold {item.number}: {there}{_split(job, item)}")
        if engine == "ray":
            items = [TrainItem(job.options, run, fold) for job, run in zip(prepared, folders, strict=True)]
            train_on_ray(opened, items, address=address, device=device, progress=screen.progress)
        for job, run in zip(prepared, folders, strict=True) if engine == "local" else ():
            progress = of_seed(screen.progress, job.options.seed) if seeds > 1 else screen.progress
            cross_validate(opened, fold=fold, run=run, job=job, jobs=parse_jobs(jobs), progress=progress)
    summaries = [summarise(run) for run in folders]
    for summary in summaries:
        write_report(summary)
    if seeds == 1:
        show_summary(screen, summaries[0])
        screen.json(summaries[0].to_json())
    else:
        show_joined(screen, joined := join(summaries))
        screen.json(joined.to_json())


def _caveats(folds: list[Fold]) -> list[str]:
    """What must be said before training: once where it is true of all the folds, else with the fold's name."""
    lines = dict.fromkeys(line for fold in folds for line in fold.caveats)
    common = [line for line in lines if all(line in fold.caveats for fold in folds)]
    return common + [f"fold {f.number} ({f.name}): {line}" for f in folds for line in f.caveats if line not in common]


def _split(job: Job, fold: Fold) -> str:
    """``test 2F (481), validation 2M (542), training 4,508; …`` with the overlaps counted."""
    test, validation = ("+".join(job.own_names(names)) for names in (fold.test_speakers, fold.validation_speakers))
    if job.test_cache is not None:
        test = f"{counted(len(fold.test_speakers), 'speaker')} of {fold.name}"
        validation = f"speaker{'s' * (len(fold.validation_speakers) > 1)} {validation} of {job.cache.corpus}"
    elif len(fold.validation_speakers) > 3:
        validation = f"20 % of {len(fold.validation_speakers)} speakers"
    sizes = (len(fold.test), len(fold.validation), len(fold.train))
    text = "test {} ({:,}), validation {} ({:,}), training {:,}".format(test, sizes[0], validation, *sizes[1:])
    return text + "".join(f"; {count:,} {what}" for what, count in fold.overlaps.items())
