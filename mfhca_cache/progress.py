"""How long work tells its caller where it is. The library never prints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """One report of long work.

    Attributes:
        stage: what is being done, in a few words.
        done, total: of ``unit``.
        unit: what is counted: clips, files, epochs.
        resumed: of ``done``, what an earlier run had done already.
        bytes_written: so far, by this run.
        detail: the latest news, such as a validation score.
        elsewhere: of ``done``, what other runs have done meanwhile.
    """

    stage: str
    done: int
    total: int
    unit: str
    resumed: int = 0
    bytes_written: int = 0
    detail: str = ""
    elsewhere: int = 0


ProgressCallback = Callable[[Progress], None]


def silent(_: Progress) -> None:
    """The callback that shows nothing."""
