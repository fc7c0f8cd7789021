"""What processes of ours tell each other."""

from __future__ import annotations

import pickle
import threading

from mfhca_cache.errors import CacheError
from mfhca_cache.processes import how_it_ended, portable


def test_our_errors_pass_as_they_are() -> None:
    error = portable(CacheError("the disk is full"))
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is CacheError and str(again) == "the disk is full" and not hasattr(again, "__notes__")


def test_errors_that_are_not_ours_bring_their_traceback() -> None:
    try:
        raise KeyError("word")
    except KeyError as error:
        passed = portable(error)
    assert isinstance(passed, KeyError) and "test_processes.py" in passed.__notes__[0]


def test_what_cannot_travel_becomes_its_words() -> None:
    class Local(Exception):
        def __init__(self) -> None:
            super().__init__("held by a lock")
            self.lock = threading.Lock()

    passed = portable(Local())
    assert type(passed) is RuntimeError and "held by a lock" in str(passed)


def test_how_a_process_ended_is_said_in_words() -> None:
    assert how_it_ended(-9) == "was killed by SIGKILL, as a system does that runs out of memory"
    assert how_it_ended(3) == "ended with status 3"
