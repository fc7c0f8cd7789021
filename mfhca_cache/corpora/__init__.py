"""Speech-emotion corpora: a folder as its authors publish it, read into a manifest.

Each module reads one corpus with ``read(root, progress)``; `read_corpus` finds it by name and explains what is wrong
with a folder that is none.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from mfhca_cache.corpora import cremad, emodb, iemocap, ravdess, synthetic, table
from mfhca_cache.corpora.common import OnFile, is_folder
from mfhca_cache.errors import CorpusError
from mfhca_cache.manifest import Manifest


class _Reader(Protocol):
    LAYOUT: str

    def looks_like(self, root: Path) -> bool: ...

    def read(self, root: Path, progress: OnFile | None = None) -> Manifest: ...


_READERS: dict[str, _Reader] = {
    "iemocap": iemocap,
    "emodb": emodb,
    "ravdess": ravdess,
    "cremad": cremad,
    "table": table,
    "synthetic": synthetic,
}

#: Names that `read_corpus` takes.
CORPORA = tuple(_READERS)

_ARCHIVES = (".zip", ".gz", ".tgz", ".tar", ".7z", ".rar")


def read_corpus(name: str, root: str | Path, progress: OnFile | None = None) -> Manifest:
    """Read a corpus folder: check and hash every audio file, and make the utterance table.

    Files that must not be used are listed in the manifest's ``rejected``, and the rest goes on.

    Args:
        name: one of `CORPORA`.
        root: the corpus folder; for ``table`` also the CSV itself.
        progress: called as ``progress(done, total)`` after each file.

    Raises:
        CorpusError: an unknown name, a root that is missing, empty, no folder or of another corpus, or no utterance.
    """
    if name not in _READERS:
        raise CorpusError(f"corpus {name!r} is not known; expected one of {', '.join(CORPORA)}")
    root = Path(root)
    reader = _READERS[name]
    _check_root(name, root, reader)
    if not reader.looks_like(root):
        deeper = next((folder for folder in _folders(root) if reader.looks_like(folder)), None)
        if deeper is not None:
            raise CorpusError(f"{root}: {name} lies one folder deeper; name {deeper}")
        others = [other for other, module in _READERS.items() if other != name and module.looks_like(root)]
        if others:
            raise CorpusError(
                f"{root}: got a folder that looks like {others[0]}, not like {name}; "
                f"read it as {others[0]}, or name {reader.LAYOUT}"
            )
    return reader.read(root, progress)


def _check_root(name: str, root: Path, reader: _Reader) -> None:
    try:
        if not root.exists():
            raise CorpusError(f"{root}: no such folder; expected {reader.LAYOUT}")
        if root.is_file() and not (name == "table" and root.suffix.lower() == ".csv"):
            fix = "unpack it and name the folder" if root.suffix in _ARCHIVES else "name the folder"
            raise CorpusError(f"{root}: is a file; {fix}; expected {reader.LAYOUT}")
        if root.is_dir() and not any(root.iterdir()):
            raise CorpusError(f"{root}: the folder is empty; expected {reader.LAYOUT}")
    except OSError as error:
        raise CorpusError(f"{root}: cannot be read ({error.strerror or error}); check its permissions") from error


def _folders(root: Path) -> Iterator[Path]:
    if is_folder(root):
        yield from sorted(path for path in root.iterdir() if is_folder(path) and not path.name.startswith("."))
