"""What every corpus reader shares: finding audio files, checking each of them, and making the table.

A reader turns names and label files into `Utterance` objects, and what it must leave out into `Rejected` ones;
`collect` does the rest. A reason starts with a short fixed name for counting, such as ``name:`` or ``truncated:``.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePath

import pandas as pd

from mfhca_cache.errors import AudioError, CorpusError
from mfhca_cache.files import leads_outside
from mfhca_cache.manifest import COLUMNS, Manifest, Rejected, is_inside, make_manifest, natural_key
from mfhca_cache.wav import SUFFIXES, AudioInfo, probe

#: Called as ``progress(done, total)`` in the caller's thread after each file.
OnFile = Callable[[int, int], None]

#: Threads that read and hash; each holds one file in memory.
WORKERS = 8
#: Entries that `holds_name` looks at before it gives up.
_MAX_ENTRIES = 20_000


@dataclass(frozen=True)
class Utterance:
    """What a reader knows of an utterance before its audio is opened.

    Attributes:
        utterance_id: unique in the corpus.
        path: of the audio file, inside the corpus root.
        speaker: the person who speaks.
        label: the raw label.
        session, recording, text: as in the manifest, or empty.
        valence, arousal, dominance: ratings on the corpus's own scale, or NaN.
        source: where it is listed, to be named if it is rejected (``row 7``), or empty.
    """

    utterance_id: str
    path: Path
    speaker: str
    label: str
    session: str = ""
    recording: str = ""
    text: str = ""
    valence: float = math.nan
    arousal: float = math.nan
    dominance: float = math.nan
    source: str = ""


def audio_files(folder: Path, root: Path | None = None, rejected: list[Rejected] | None = None) -> list[Path]:
    """The audio files in a folder and the folders in it, in natural order, by the endings `wav.SUFFIXES`.

    Hidden files and folders (``._x.wav``, ``.DS_Store``, ``.git``) are left out silently.

    Args:
        folder: where to look.
        root: the corpus root, which no symbolic link may lead out of; the folder itself if None.
        rejected: links that are broken or lead out of the root, and folders that cannot be read, are added to it.
    """
    root = folder if root is None else root
    left_out: list[Rejected] = [] if rejected is None else rejected
    if leads_outside(root, folder):
        left_out.append(Rejected(relative_path(root, folder), _OUTSIDE))
        return []
    found = list(_walk(folder, root, root.resolve(), left_out))
    return sorted(found, key=lambda path: natural_key(str(path)))


_OUTSIDE = "link: a symbolic link that leads out of the corpus folder; copy the files into it"


def _walk(folder: Path, root: Path, real_root: Path, rejected: list[Rejected]) -> Iterator[Path]:
    try:
        with os.scandir(folder) as entries:
            listed = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        rejected.append(Rejected(relative_path(root, folder), f"unreadable: the folder cannot be read ({error})"))
        return
    for entry in listed:
        path = Path(entry.path)
        is_audio = path.suffix.lower() in SUFFIXES
        if entry.is_symlink() and (is_audio or is_folder(path)):
            if not os.path.exists(path):  # noqa: PTH110 (a link that loops is a broken one, and no error)
                reason = "link: a broken symbolic link; fetch the file it stands for (git-annex: `git annex get`)"
                rejected.append(Rejected(relative_path(root, path), reason))
                continue
            if not path.resolve().is_relative_to(real_root):
                rejected.append(Rejected(relative_path(root, path), _OUTSIDE))
                continue
        if entry.is_file() and is_audio:
            yield path
        # A linked folder inside the root is found at its own place, and never makes the walk run in a circle.
        elif entry.is_dir(follow_symlinks=False):
            yield from _walk(path, root, real_root, rejected)


def collect_named(
    corpus: str, folder: Path, root: Path, parse: Callable[[Path], Utterance | str], progress: OnFile | None
) -> Manifest:
    """`collect` for a corpus whose file names say everything.

    Args:
        folder: where the files lie, in ``root``.
        parse: a file's utterance, or the reason why its name gives none.
    """
    utterances: list[Utterance] = []
    rejected: list[Rejected] = []
    for path in audio_files(folder, root, rejected):
        found = parse(path)
        if isinstance(found, Utterance):
            utterances.append(found)
        else:
            rejected.append(Rejected(relative_path(root, path), found))
    return collect(corpus, root, utterances, rejected, progress)


def is_folder(path: Path) -> bool:
    """Whether it is a folder; False, and no error as from `Path.is_dir`, where one may not look."""
    return os.path.isdir(path)  # noqa: PTH112


def relative_path(root: Path, path: Path) -> str:
    """The path relative to the root, with forward slashes; bytes that are no UTF-8 are spelled ``\\udcff``."""
    name = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()
    return name.encode("utf-8", "backslashreplace").decode()


def holds_name(folder: Path, pattern: re.Pattern[str], depth: int = 3) -> bool:
    """Whether an audio file whose stem matches lies in the folder, or at most ``depth`` folders deep in it.

    Cheap: it stops at the first match, and after 20,000 entries.
    """
    budget = _MAX_ENTRIES
    folders = [(folder, depth)]
    while folders:
        here, left = folders.pop()
        try:
            with os.scandir(here) as entries:
                for entry in entries:
                    budget -= 1
                    if budget < 0:
                        return False
                    name = PurePath(entry.name)
                    if name.suffix.lower() in SUFFIXES and pattern.fullmatch(name.stem):
                        return True
                    if left and not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False):
                        folders.append((Path(entry.path), left - 1))
        except OSError:
            continue
    return False


def collect(
    corpus: str,
    root: Path,
    utterances: Sequence[Utterance],
    rejected: Iterable[Rejected],
    progress: OnFile | None = None,
) -> Manifest:
    """Check and hash every file, and make the manifest; what is wrong is rejected, and the rest goes on.

    Args:
        corpus: name of the reader.
        root: the corpus folder, which every path lies in.
        utterances: what the reader found.
        rejected: what the reader left out already.
        progress: called as ``progress(done, total)`` after each file.

    Raises:
        CorpusError: no utterance is left; the first reasons are named.
    """
    left_out = list(rejected)
    kept = _portable(root, _unique(root, utterances, left_out), left_out)
    rows = []
    for item, info in zip(kept, _probe_all([item.path for item in kept], progress), strict=True):
        if isinstance(info, AudioError):
            left_out.append(_rejection(root, item, f"{info.reason}: {info}"))
        else:
            rows.append(_row(corpus, root, item, info))
    left_out.sort(key=lambda one: natural_key(one.path))
    if not rows:
        raise CorpusError(f"{root}: no utterance of {corpus} found; {_first_reasons(left_out)}")
    return make_manifest(corpus, root, pd.DataFrame(rows, columns=list(COLUMNS)), tuple(left_out), source=str(root))


def _unique(root: Path, utterances: Sequence[Utterance], rejected: list[Rejected]) -> list[Utterance]:
    """The utterances whose id occurs once; all files of an id that occurs more often are rejected."""
    by_id: dict[str, list[Utterance]] = {}
    for item in utterances:
        by_id.setdefault(item.utterance_id, []).append(item)
    for name, items in by_id.items():
        for item in items if len(items) > 1 else ():
            others = [relative_path(root, other.path) for other in items if other is not item]
            more = f" and {len(others) - 1} more" if len(others) > 1 else ""
            reason = f"duplicate: the id {name!r} is also that of {others[0]}{more}; keep one of them"
            rejected.append(_rejection(root, item, reason))
    return [items[0] for items in by_id.values() if len(items) == 1]


def _portable(root: Path, utterances: Sequence[Utterance], rejected: list[Rejected]) -> list[Utterance]:
    """The utterances whose file name can stand in a manifest."""
    kept = []
    for item in utterances:
        path = item.path.relative_to(root).as_posix()
        if is_inside(path) and not any("\ud800" <= character <= "\udfff" for character in path):
            kept.append(item)
        else:
            reason = "name: got a backslash, a drive letter or bytes that are no UTF-8 in the path; rename the file"
            rejected.append(_rejection(root, item, reason))
    return kept


def _probe_all(paths: Sequence[Path], progress: OnFile | None) -> list[AudioInfo | AudioError]:
    def attempt(path: Path) -> AudioInfo | AudioError:
        try:
            return probe(path)
        except AudioError as error:
            return error

    results: list[AudioInfo | AudioError] = []
    pool = ThreadPoolExecutor(WORKERS)
    try:
        for result in pool.map(attempt, paths):
            results.append(result)
            if progress is not None:
                progress(len(results), len(paths))
    finally:
        # On Ctrl-C the files not begun are dropped instead of being read first.
        pool.shutdown(wait=True, cancel_futures=True)
    return results


def _row(corpus: str, root: Path, item: Utterance, info: AudioInfo) -> tuple[object, ...]:
    """One row in the order of `COLUMNS`."""
    return (
        corpus, item.utterance_id, item.path.relative_to(root).as_posix(), item.speaker, item.session, item.recording,
        item.label, item.valence, item.arousal, item.dominance, item.text, info.seconds, info.sample_rate,
        info.channels, info.sha256,
    )  # fmt: skip


def _rejection(root: Path, item: Utterance, reason: str) -> Rejected:
    return Rejected(relative_path(root, item.path), f"{reason} ({item.source})" if item.source else reason)


def _first_reasons(rejected: Sequence[Rejected], shown: int = 3) -> str:
    if not rejected:
        return "it holds no audio file"
    first = "; ".join(f"{item.path}: {item.reason}" for item in rejected[:shown])
    return f"{len(rejected)} rejected, the first: {first}"
