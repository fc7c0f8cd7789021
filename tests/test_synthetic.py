from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
from numpy.typing import NDArray
from scipy.signal import stft
from sklearn.linear_model import RidgeClassifier
from sklearn.metrics import recall_score
from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mfhca_cache.corpora import iemocap, read_corpus, synthetic
from mfhca_cache.corpora.voice import Voice, speak
from mfhca_cache.errors import CorpusError
from mfhca_cache.labels import FOUR_CLASSES, class_map
from mfhca_cache.manifest import Manifest, select_rows


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    root = tmp_path_factory.mktemp("synthetic") / "corpus"
    synthetic.write_corpus(root)
    return read_corpus("synthetic", root)


def digests(root: Path) -> dict[str, str]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_ten_speakers_with_all_four_classes(corpus: Manifest) -> None:
    assert corpus.corpus == "synthetic" and corpus.rejected == ()
    rows = corpus.utterances
    assert sorted(set(rows["speaker"])) == sorted(f"{session}{letter}" for session in range(1, 6) for letter in "FM")
    assert len(rows) == 150 and len(select_rows(rows, "four-class", "synthetic")) == 140
    classes = class_map("four-class", "synthetic", rows["label"]).apply(rows["label"])
    table = pd.crosstab(rows["speaker"], classes)
    assert (table[list(FOUR_CLASSES)] >= 3).all(axis=None)
    assert {"ang", "hap", "exc", "neu", "sad", "xxx", "oth"} == set(rows["label"])


def test_it_has_what_makes_the_real_corpus_hard(corpus: Manifest) -> None:
    root, rows = corpus.root, corpus.utterances
    assert root is not None
    names = set(digests(root))
    assert any(Path(name).name.startswith("._") and name.endswith(".wav") for name in names)
    assert any("EmoEvaluation/._" in name for name in names) and any(name.endswith(".DS_Store") for name in names)
    for folder in ("Attribute", "Categorical", "Self-evaluation"):
        assert any(f"EmoEvaluation/{folder}/" in name for name in names)
    assert (rows["speaker"].str[1] != rows["utterance_id"].str[5]).sum() > 50
    assert rows["utterance_id"].str.contains("XX").sum() == 10
    assert (rows.groupby("recording")["speaker"].nunique() == 2).all()
    assert set(rows["recording"].str.contains("_impro")) == {True, False}
    assert (rows["text"] != "").all() and rows[["valence", "arousal", "dominance"]].notna().all(axis=None)
    assert rows[["valence", "arousal", "dominance"]].stack().between(1, 5).all()


def test_audio_is_16_bit_16_khz_of_0_6_to_9_s(corpus: Manifest) -> None:
    rows = corpus.utterances
    assert (rows["sample_rate"] == 16_000).all() and (rows["channels"] == 1).all()
    assert rows["seconds"].between(0.6, 9.0).all() and rows["seconds"].max() > 5
    assert rows["seconds"].between(1, 4).mean() > 0.7
    assert rows["sha256"].is_unique
    for path in rows["path"].iloc[::10]:
        assert corpus.root is not None
        audio, _ = soundfile.read(corpus.root / path)
        assert soundfile.info(corpus.root / path).subtype == "PCM_16"
        assert 0.005 < np.abs(audio).max() < 0.999 and abs(audio.mean()) < 0.01


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("one", 3), ("again", 3), ("other", 4)):
        synthetic.write_corpus(tmp_path / name, 4, seed)
    assert digests(tmp_path / "one") == digests(tmp_path / "again")
    other = digests(tmp_path / "other")
    assert all(
        other[name] != digest
        for name, digest in digests(tmp_path / "one").items()
        if Path(name).name[0] == "S" and name.endswith(".wav") and name in other
    )
    rows = read_corpus("synthetic", tmp_path / "one").utterances
    classes = class_map("four-class", "synthetic", rows["label"]).apply(rows["label"])
    assert (pd.crosstab(rows["speaker"], classes) == 1).all(axis=None)


def test_it_is_told_from_the_real_corpus(corpus: Manifest, tmp_path: Path) -> None:
    assert corpus.root is not None
    assert synthetic.looks_like(corpus.root) and not iemocap.looks_like(corpus.root)
    with pytest.raises(CorpusError, match="looks like synthetic, not like iemocap"):
        read_corpus("iemocap", corpus.root)
    with pytest.raises(CorpusError, match="without the mark of a generated corpus"):
        synthetic.read(corpus.root / "Session1")


def test_progress_and_refusals(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    synthetic.write_corpus(tmp_path / "new", 4, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 50) for done in range(1, 51)]
    with pytest.raises(CorpusError, match="is not empty; delete it or name another folder"):
        synthetic.write_corpus(tmp_path / "new", 4)
    for count in (3, 901):
        with pytest.raises(CorpusError, match=f"got {count}; expected 4 to 900"):
            synthetic.write_corpus(tmp_path / "other", count)
    assert not (tmp_path / "other").exists()


def test_a_corpus_whose_writer_was_stopped_is_not_taken_for_a_whole_one(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthetic.write_corpus(tmp_path / "half", 4, progress=stop)
    assert not synthetic.looks_like(tmp_path / "half")


def test_pitch_and_level_are_those_asked_for() -> None:
    rng = np.random.default_rng(0)
    voice = Voice(pitch=120.0, movement=0.5, rate=4.5, level=0.0, tilt=0.9, breath=0.02, tract=1.0)
    audio = speak(voice, 4.0, rng)
    assert audio.shape == (64_000,) and audio.dtype == np.float32 and np.abs(audio).max() < 1
    assert period_frequency(audio) == pytest.approx(120, rel=0.1)
    loud = speak(Voice(240.0, 0.5, 4.5, 10.0, 0.9, 0.02, 1.15), 4.0, rng)
    assert period_frequency(loud) == pytest.approx(240, rel=0.1)
    assert 20 * np.log10(loud.std() / audio.std()) == pytest.approx(10, abs=2)


def period_frequency(audio: NDArray[np.float32]) -> float:
    """Frequency of the highest peak of the autocorrelation between 70 and 400 Hz."""
    spectrum = np.abs(np.fft.rfft(audio, 2 * len(audio))) ** 2
    correlation = np.fft.irfft(spectrum)[: len(audio)]
    return 16_000 / (40 + int(np.argmax(correlation[40:228])))


def log_mel_statistics(path: Path) -> NDArray[np.float64]:
    audio, rate = soundfile.read(path)
    _, _, spectrum = stft(audio, rate, nperseg=640, noverlap=480)
    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 8000 / 700), 42) / 2595) - 1)
    bins = np.arange(321)[:, None] * 25.0
    rising, falling = (bins - edges[:-2]) / np.diff(edges)[:-1], (edges[2:] - bins) / np.diff(edges)[1:]
    mel = 10 * np.log10(np.clip(np.minimum(rising, falling), 0, None).T @ np.abs(spectrum) ** 2 + 1e-12)
    return np.concatenate([mel.mean(1), mel.std(1), np.abs(np.diff(mel, axis=1)).mean(1)])


def test_it_is_neither_trivial_nor_hopeless(corpus: Manifest) -> None:
    assert corpus.root is not None
    rows = select_rows(corpus.utterances, "four-class", "synthetic")
    features = np.array([log_mel_statistics(corpus.root / path) for path in rows["path"]])
    classes = class_map("four-class", "synthetic", rows["label"]).apply(rows["label"]).to_numpy()
    model = make_pipeline(StandardScaler(), RidgeClassifier(alpha=100))
    predicted = cross_val_predict(model, features, classes, groups=rows["speaker"], cv=LeaveOneGroupOut())
    assert 0.6 <= recall_score(classes, predicted, average="macro") <= 0.85
