"""What processes of ours tell each other: errors that travel, and words for how a process ended."""

from __future__ import annotations

import pickle
import signal
import traceback

from mfhca_cache.errors import MfhcaError


def portable(error: BaseException) -> BaseException:
    """An error ready for another process; where it is not one of ours, with its traceback."""
    if not isinstance(error, MfhcaError):
        error.add_note("".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError("".join(traceback.format_exception(error)))
    return error


def how_it_ended(status: int) -> str:
    """An exit status, negative for a signal, in words: ``was killed by SIGKILL …`` or ``ended with status 3``."""
    if status < 0:
        return f"was killed by {signal.Signals(-status).name}, as a system does that runs out of memory"
    return f"ended with status {status}"
