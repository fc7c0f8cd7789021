"""The command line: parse, one library call, show."""

from __future__ import annotations

import io
import os
import signal
import sys
from typing import Any


def main() -> None:
    """Run `mfhca`."""
    _keep_freed_memory()
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


def _keep_freed_memory() -> None:
    """Tell glibc to keep large freed blocks: giving them back after every operation doubles the time of a step.

    Before torch is imported, and by the command only: a library must not change its host's allocator.
    """
    if sys.platform != "linux":
        return
    import ctypes

    try:
        libc = ctypes.CDLL("libc.so.6")
        m_trim_threshold, m_mmap_threshold, limit = -1, -3, 2**31 - 1
        libc.mallopt(m_mmap_threshold, limit)
        libc.mallopt(m_trim_threshold, limit)
    except (OSError, AttributeError):
        return  # Another C library: nothing to set.
