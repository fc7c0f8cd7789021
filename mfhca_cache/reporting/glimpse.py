"""What of a run's page needs its cache, or why it is left out, in words that name the command which adds it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mfhca_cache.errors import MfhcaError
from mfhca_cache.progress import Progress, ProgressCallback
from mfhca_cache.reporting.inside import Attention, attention_of, has_features, why_not
from mfhca_cache.reporting.spaces import Spaces, look
from mfhca_cache.reporting.stored import StoredRun, telling_utterances
from mfhca_cache.spec import SAMPLE_RATE, SpectrogramSpec
from mfhca_cache.storage.cache import Cache
from mfhca_cache.training.trainer import repeatable


@dataclass(frozen=True)
class Glimpse:
    """What trained models show of themselves.

    Attributes:
        spaces: features as points; None where they are left out.
        rows, attention: utterances and HCA's attention over them; empty where it is left out.
        bin_hz: width of a spectrogram's bin.
        no_spaces, no_attention: why they are left out, in words.
    """

    spaces: Spaces | None = None
    rows: tuple[dict[str, Any], ...] = ()
    attention: tuple[Attention, ...] = ()
    bin_hz: float = SAMPLE_RATE / SpectrogramSpec().n_fft
    no_spaces: str = ""
    no_attention: str = ""


def glimpse(
    run: StoredRun,
    cache: Cache | None,
    beside: Sequence[Path],
    fold: int | None,
    progress: ProgressCallback,
    no_cache: str = "",
) -> Glimpse:
    """Look at a run's models through the cache of its test utterances.

    Args:
        no_cache: why there is no cache, in words; by default that it is not at hand.

    Raises:
        TrainingError: no run named in ``beside`` can stand beside this one.
    """
    record = run.results[0].record
    why = _why_not(run, cache, no_cache)
    if cache is None or why:
        return Glimpse(no_spaces=why, no_attention=why)
    # As in training: sums depend on how many threads share them.
    with repeatable(int(record.get("threads", 1)), fill=False):
        return _look(run, cache, beside, fold, progress)


def _look(
    run: StoredRun, cache: Cache, beside: Sequence[Path], fold: int | None, progress: ProgressCallback
) -> Glimpse:
    try:
        spaces, no_spaces = look(cache, run, beside, fold, progress), ""
    except MfhcaError as error:
        if beside:
            raise
        spaces, no_spaces = None, f"Left out: {error}."
    rows = telling_utterances(run).to_dict("records")
    seen: list[Attention] = []
    no_attention = ""
    by_number = {result.number: result for result in run.results}
    try:
        for number, row in enumerate(rows):
            attention = attention_of(cache, by_number[row["fold"]], row["utterance_id"])
            if attention is None:
                no_attention = "This model has no HCA, and so no attention over time to be shown."
                break
            seen.append(attention)
            progress(Progress("attention", number + 1, len(rows), "utterances"))
    except MfhcaError as error:
        seen, no_attention = [], f"Left out: {error}."
    name = run.results[0].record["features"].get("spectrogram")
    settings = cache.features[name].settings if name in cache.features else {}
    bin_hz = SAMPLE_RATE / float(settings.get("n_fft", SpectrogramSpec().n_fft))
    shown = tuple({str(k): v for k, v in row.items()} for row in rows) if seen else ()
    return Glimpse(spaces, shown, tuple(seen), bin_hz, no_spaces, no_attention)


def _why_not(run: StoredRun, cache: Cache | None, no_cache: str) -> str:
    """Why nothing can be shown; empty where it can."""
    record = run.results[0].record
    command = f"mfhca report {shlex.quote(f'runs/{run.folder.resolve().name}')} --cache DIR"
    if reason := has_features(record):
        return f"Left out: {reason}."
    tested = record.get("test_corpus")
    if cache is None and no_cache:
        return f"Left out: the cache cannot be read: {no_cache.rstrip('.')}. With a sound one, `{command}` adds it."
    if cache is None:
        of = f"of {tested}, on which this run was tested," if tested else "that this run was trained from"
        return f"Left out: the cache {of} is not at hand. `{command}` adds it."
    reason = why_not(cache, record)
    whose = f"the cache of {tested}" if tested else "the run's own cache"
    return f"Left out: {reason}. With {whose}, `{command}` adds it." if reason else ""
