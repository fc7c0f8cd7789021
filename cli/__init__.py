"""The command line: parse, one library call, show."""

from __future__ import annotations

import io
import os
import signal
import sys
from typing import Any

from mfhca_cache.allocator import keep_freed_memory


def main() -> None:
    """Run `mfhca`."""
    keep_freed_memory()  # Before torch is imported.
    # cuBLAS repeats its results only with a workspace of fixed size, and reads this once, when it starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    _show_any_name()
    _lose_no_interrupt()
    try:
        from .app import mfhca

        mfhca(prog_name="mfhca")
    except KeyboardInterrupt:
        # Ctrl-C before the command has begun, or while its arguments are read.
        sys.stderr.write("\nStopped before anything was done.\n")
        sys.exit(130)


def _lose_no_interrupt() -> None:
    """Raise an interrupt once more that came while Python ran a finaliser, where it is printed and forgotten."""
    if sys.platform == "win32":
        return
    usual = sys.unraisablehook

    def again(unraisable: Any) -> None:
        kind = unraisable.exc_type
        if not issubclass(kind, KeyboardInterrupt):
            usual(unraisable)
            return

        def interrupt(*_: object) -> None:
            raise kind

        signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, 0.01)

    sys.unraisablehook = again


def _show_any_name() -> None:
    """Spell a file's name that is no UTF-8 as ``\\udcff`` instead of failing to print it."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
