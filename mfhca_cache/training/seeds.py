"""One run a seed, so that a score comes with its spread: where the runs lie, and how they are trained one by one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from mfhca_cache.progress import ProgressCallback, silent
from mfhca_cache.storage.cache import Cache
from mfhca_cache.training.crossval import cross_validate
from mfhca_cache.training.options import TrainOptions
from mfhca_cache.training.result import FoldResult


def seed_folder(run: str | Path, seed: int) -> Path:
    """Where a seed's run lies: ``runs/trial`` itself for seed 0, ``runs/trial-seed3`` for seed 3."""
    run = Path(run)
    return run if seed == 0 else run.with_name(f"{run.name}-seed{seed}")


def seeds_suffix(first: int, count: int) -> str:
    """What the name of a folder that is of several runs says of their seeds: ``-seed3-seeds2``; empty for seed 0."""
    return (f"-seed{first}" if first else "") + (f"-seeds{count}" if count > 1 else "")


def of_seed(progress: ProgressCallback, seed: int) -> ProgressCallback:
    """The same callback, told whose seed the work is."""
    return lambda report: progress(replace(report, stage=f"seed {seed}, {report.stage}"))


def cross_validate_seeds(
    cache: Cache,
    options: TrainOptions | None = None,
    seeds: Iterable[int] = range(5),
    *,
    fold: str | int = "all",
    run: str | Path | None = None,
    device: str = "auto",
    test_cache: Cache | None = None,
    progress: ProgressCallback = silent,
) -> dict[int, list[FoldResult]]:
    """Train the folds of every seed that are not there yet; seed → the results asked for, in order.

    Args:
        options: of all seeds; their own ``seed`` is not used.
        seeds: such as ``range(5)``.
        run: the run's folder for seed 0; the other seeds' lie beside it, see `seed_folder`.
        fold, device, test_cache, progress: as in `mfhca_cache.training.crossval.cross_validate`, with its errors.
    """
    options = options or TrainOptions()
    return {
        seed: cross_validate(
            cache,
            replace(options, seed=seed),
            fold=fold,
            run=None if run is None else seed_folder(run, seed),
            device=device,
            test_cache=test_cache,
            progress=of_seed(progress, seed),
        )
        for seed in seeds
    }
