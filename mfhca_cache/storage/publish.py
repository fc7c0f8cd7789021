"""Publishing files so that a reader sees all of one or none of it, whatever kills the writer.

A file is written to a hidden sibling, flushed to the disk, renamed over its name, and the folder is flushed too.
After a power cut either the old file is there or the new one.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mfhca_cache.errors import CacheError

#: Folder of a cache that holds its locks.
LOCKS = ".locks"


def publish(path: Path, data: bytes | memoryview) -> None:
    """Write ``data`` to ``path`` atomically and durably.

    Raises:
        CacheError: the disk is full, the folder is read-only, or the write failed otherwise; nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise CacheError(
            f"{path}: could not be written ({error.strerror or error}); no half file is left. "
            "Check free space and permissions, then run the same command again"
        ) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def publish_json(path: Path, value: Any) -> None:
    """`publish` a JSON value, indented, with a final line end."""
    try:
        data = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:  # A folder's name that is no UTF-8.
        data = json.dumps(value, indent=2, allow_nan=False).encode()
    publish(path, data + b"\n")


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, so that a rename in it survives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def free_bytes(path: Path) -> int:
    """Bytes free on the disk that holds a path, or would hold it once it is made."""
    path = path.absolute()
    return shutil.disk_usage(next(item for item in (path, *path.parents) if item.is_dir())).free


def remove_temporaries(folder: Path, name: str) -> None:
    """Remove what killed writers of ``name`` left. Only for who holds the lock of ``name``."""
    # A hidden file of this name and nothing else: shard session1-0000.h5 is not session1-0000.h5x.
    for leftover in folder.glob(f".{name}.*.tmp"):
        leftover.unlink(missing_ok=True)


class CacheLock(FileLock):
    """A lock of a cache; the system lets go of it when its holder dies, however it dies."""

    def acquire(self, *args: Any, **options: Any) -> Any:
        """`filelock.FileLock.acquire`.

        Raises:
            Timeout: another run holds it.
            CacheError: the lock's file cannot be made: a read-only folder or a full disk.
        """
        try:
            return super().acquire(*args, **options)
        except Timeout:
            raise
        except OSError as error:
            raise _not_writable(Path(self.lock_file), error) from error


def lock(cache: Path, name: str) -> CacheLock:
    """The lock called ``name`` of a cache.

    Raises:
        CacheError: the folder of locks cannot be made.
    """
    folder = cache / LOCKS
    make_folder(folder)
    return CacheLock(folder / f"{name}.lock")


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it that are missing, so that they survive a power cut.

    Raises:
        CacheError: it cannot be made.
    """
    try:
        if folder.is_dir():
            return
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)
    except OSError as error:
        raise _not_writable(folder, error) from error


def _not_writable(path: Path, error: OSError) -> CacheError:
    return CacheError(
        f"{path}: could not be made ({error.strerror or error}); is the cache read-only, or the disk full? "
        "Check free space and permissions, then run the same command again"
    )
