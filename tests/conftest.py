"""Fixtures: small generated corpora and caches, and the real speech that some tests need."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import hypothesis
import numpy as np
import pandas as pd
import pytest
import soundfile

from mfhca_cache.extraction.pipeline import extract
from mfhca_cache.manifest import COLUMNS, Manifest, make_manifest
from mfhca_cache.spec import EncoderSpec, ExtractSpec
from mfhca_cache.storage.cache import Cache, open_cache
from mfhca_cache.wav import probe

# A shell that starts tests in the background has them ignore Ctrl-C, and every process that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
# A busy machine must not fail a property that holds.
hypothesis.settings.register_profile("no-deadline", deadline=None)
hypothesis.settings.load_profile("no-deadline")

TINY = ExtractSpec(encoder=EncoderSpec("random-tiny"))


#: What the long runs counted, for docs/reliability.md.
FIGURES: list[str] = []


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Notes a line of figures, which `make test-faults` prints at its end."""
    long = request.node.get_closest_marker("faults") is not None
    return FIGURES.append if long else lambda _: None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if FIGURES:
        terminalreporter.section("figures")
        for line in FIGURES:
            terminalreporter.write_line(f"- {line}")


@pytest.fixture
def real_speech() -> Path:
    """The folder of real speech named by MFHCA_TEST_DATA."""
    folder = os.environ.get("MFHCA_TEST_DATA")
    if not folder:
        pytest.skip("needs real speech: set MFHCA_TEST_DATA to a folder that holds emodb/ and ravdess/")
    return Path(folder)


def tone(seconds: float, pitch: float = 150.0, seed: int = 0, rate: int = 16_000) -> np.ndarray:
    """A buzzing, slightly noisy tone, float64 in ±1."""
    t = np.arange(round(seconds * rate)) / rate
    buzz = sum(np.sin(2 * np.pi * pitch * k * t) / k for k in range(1, 8))
    return 0.2 * buzz + 0.01 * np.random.default_rng(seed).standard_normal(len(t))


def write_wav(path: Path, samples: np.ndarray, rate: int = 16_000) -> Path:
    """Write 16-bit PCM."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, subtype="PCM_16")
    return path


def build_manifest(root: Path, rows: list[dict[str, object]]) -> Manifest:
    """A manifest of wavs under root; each row gives utterance_id and what differs from the defaults."""
    table = []
    for row in rows:
        path = f"{row['utterance_id']}.wav"
        info = probe(root / path)
        defaults: dict[str, object] = dict.fromkeys(COLUMNS, "")
        defaults |= {"corpus": "iemocap", "path": path, "speaker": "1F", "session": "session1", "label": "neu"}
        defaults |= {"seconds": info.seconds, "sample_rate": info.sample_rate, "channels": info.channels}
        table.append({**defaults, "sha256": info.sha256, **row})
    return make_manifest("iemocap", root, pd.DataFrame(table))


LABELS = ("ang", "hap", "neu", "sad")


def small_corpus(root: Path, sessions: int = 3, seconds: tuple[float, ...] = (0.7, 1.2, 3.4, 0.9)) -> Manifest:
    """Two speakers a session, one utterance a class each, pitched by class; the third label has two clips."""
    rows: list[dict[str, object]] = []
    for session in range(1, sessions + 1):
        for speaker, base in (("F", 220.0), ("M", 120.0)):
            for number, (label, length) in enumerate(zip(LABELS, seconds, strict=True)):
                name = f"Ses{session:02d}_{speaker}{number:03d}"
                pitch = base * (1 + 0.15 * number)
                write_wav(root / f"{name}.wav", tone(length, pitch, seed=len(rows)))
                row = {"utterance_id": name, "speaker": f"{session}{speaker}", "session": f"session{session}"}
                rows.append({**row, "label": label, "recording": f"Ses{session:02d}"})
    return build_manifest(root, rows)


@pytest.fixture(scope="session")
def small_manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """24 utterances of six speakers in three sessions."""
    return small_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def small_cache_folder(small_manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their cache, with spectrograms and random-tiny features. Tests must not change it."""
    folder = tmp_path_factory.mktemp("caches") / "cache"
    extract(small_manifest, folder, TINY, device="cpu")
    return folder


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Cache]:
    """A run of three folds, trained for two epochs, and its cache. Tests must not change them."""
    from .pages import make_run

    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def small_cache(small_cache_folder: Path) -> Cache:
    """The same, opened."""
    return open_cache(small_cache_folder)
