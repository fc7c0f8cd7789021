from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

from mfhca_cache.corpora import iemocap, read_corpus
from mfhca_cache.corpora.iemocap_counts import (
    PUBLISHED_SESSIONS,
    PUBLISHED_SPEAKERS,
    PUBLISHED_TOTAL,
    compare_with_published,
    published_table,
)
from mfhca_cache.errors import CorpusError
from mfhca_cache.labels import FOUR_CLASSES, class_map
from mfhca_cache.manifest import Manifest, count_table, select_rows

from .trees import (
    APPLE_DOUBLE,
    IMPROVISED,
    OTHER_THAN_PREFIX,
    OTHERS,
    label_line,
    wav_bytes,
    write_dialogue,
    write_file,
    write_published,
)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Manifest, int]:
    root = tmp_path_factory.mktemp("published") / "IEMOCAP_full_release"
    written = write_published(root)
    return read_corpus("iemocap", root), written


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two dialogues of session 1 with four utterances."""
    folder = tmp_path / "IEMOCAP"
    write_dialogue(folder, "Ses01F_impro01", {"F000": "neu", "M000": "xxx"})
    write_dialogue(folder, "Ses01M_script01_1b", {"F012": "ang", "MXX0": "exc"})
    return folder


def reasons(manifest: Manifest) -> dict[str, str]:
    return {item.path: item.reason for item in manifest.rejected}


def test_published_counts_of_the_protocol_agree_with_each_other() -> None:
    assert PUBLISHED_TOTAL == 5531
    assert sum(sum(counts.values()) for counts in PUBLISHED_SESSIONS.values()) == 5531
    for session, counts in PUBLISHED_SESSIONS.items():
        women, men = PUBLISHED_SPEAKERS[f"{session[-1]}F"], PUBLISHED_SPEAKERS[f"{session[-1]}M"]
        both = tuple(a + b for a, b in zip(women, men, strict=True))
        assert both == (counts["ang"], counts["hap"] + counts["exc"], counts["neu"], counts["sad"])
    totals = pd.DataFrame(PUBLISHED_SESSIONS).sum(axis=1)
    assert totals.to_dict() == {"ang": 1103, "hap": 595, "exc": 1041, "neu": 1708, "sad": 1084}


def test_a_whole_corpus_has_exactly_the_published_counts(published: tuple[Manifest, int]) -> None:
    manifest, written = published
    assert manifest.rejected == ()
    assert len(manifest.utterances) == written == 5531 + 10 * len(OTHERS)
    assert compare_with_published(manifest.utterances) == []
    four = select_rows(manifest.utterances, "four-class", "iemocap")
    assert len(four) == 5531
    table = count_table(four, class_map("four-class", "iemocap", four["label"]))
    pd.testing.assert_frame_equal(table, published_table(), check_names=False)
    assert table.loc["session3"].tolist() == [240, 286, 320, 305, 1151]
    assert table.loc["all"].tolist() == [1103, 1636, 1708, 1084, 5531]
    by_speaker = pd.crosstab(four["speaker"], class_map("four-class", "iemocap", four["label"]).apply(four["label"]))
    assert {name: tuple(row[list(FOUR_CLASSES)]) for name, row in by_speaker.iterrows()} == PUBLISHED_SPEAKERS


def test_the_speaker_is_the_letter_before_the_turn_and_never_the_prefix(published: tuple[Manifest, int]) -> None:
    four = select_rows(published[0].utterances, "four-class", "iemocap")
    letters = four["utterance_id"].str.extract(r"_([FM])(?:XX)?\d+$")[0]
    assert (four["speaker"] == four["session"].str[-1] + letters).all()
    assert (four["speaker"].str[1] != four["utterance_id"].str[5]).sum() == OTHER_THAN_PREFIX
    assert four["recording"].str.contains("_impro").sum() == IMPROVISED
    assert (four["recording"] == four["utterance_id"].str.rsplit("_", n=1).str[0]).all()


@pytest.mark.parametrize(
    ("name", "speaker"),
    [
        ("Ses01F_impro01_F000", "1F"),
        ("Ses01F_impro01_M000", "1M"),
        ("Ses05M_script01_1b_M012", "5M"),
        ("Ses05M_script01_1b_F012", "5F"),
        ("Ses03M_impro05a_F003", "3F"),
        ("Ses03M_impro05a_MXX0", "3M"),
        ("Ses01F_script01_1_FXX01", "1F"),
        ("Ses02F_script03_2_M044", "2M"),
        ("Ses06F_impro01_F000", None),
        ("Ses01F_impro01", None),
        ("Ses01F_impro01_X000", None),
        ("Ses01F_impro01_BXX0", None),
        ("Ses01F_impro01_F000x", None),
        ("", None),
    ],
)
def test_speaker_of(name: str, speaker: str | None) -> None:
    assert iemocap.speaker_of(name) == speaker


def test_differences_are_named_and_absent_sessions_too(published: tuple[Manifest, int]) -> None:
    rows = published[0].utterances
    sad = rows.index[(rows["speaker"] == "2F") & (rows["label"] == "sad")][0]
    lines = compare_with_published(rows.drop(index=sad))
    assert lines == ["session 2: sad 196, published 197", "speaker 2F: sad 112, published 113"]
    lines = compare_with_published(rows[rows["session"] != "session4"])
    assert lines == ["session 4: absent, published 1031 of the four classes"]
    swapped = rows.assign(speaker=rows["session"].str[-1] + rows["utterance_id"].str[5])
    lines = compare_with_published(swapped)
    assert all(line.startswith("speaker ") for line in lines) and len(lines) > 30


def test_rows_of_a_small_corpus(root: Path) -> None:
    manifest = read_corpus("iemocap", root)
    assert manifest.corpus == "iemocap" and manifest.root == root and manifest.rejected == ()
    table = manifest.utterances.set_index("utterance_id")
    assert table["speaker"].to_dict() == {
        "Ses01F_impro01_F000": "1F",
        "Ses01F_impro01_M000": "1M",
        "Ses01M_script01_1b_F012": "1F",
        "Ses01M_script01_1b_MXX0": "1M",
    }
    row = table.loc["Ses01M_script01_1b_MXX0"]
    assert row["label"] == "exc" and row["session"] == "session1" and row["recording"] == "Ses01M_script01_1b"
    assert row["path"] == "Session1/sentences/wav/Ses01M_script01_1b/Ses01M_script01_1b_MXX0.wav"
    # The file's order is valence, activation, dominance.
    assert (row["valence"], row["arousal"], row["dominance"]) == (2.5, 3.5, 4.5)
    assert row["text"] == "Words, of MXX0: yes."
    assert row["seconds"] == 0.1 and row["sample_rate"] == 16_000 and row["channels"] == 1


def test_progress_counts_every_file(root: Path) -> None:
    seen: list[tuple[int, int]] = []
    read_corpus("iemocap", root, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_windows_line_ends_latin_1_and_a_missing_transcript(root: Path) -> None:
    session = root / "Session1" / "dialog"
    labels = session / "EmoEvaluation" / "Ses01F_impro01.txt"
    labels.write_bytes(labels.read_bytes().replace(b"\n", b"\r\n") + b"\r\nC-F1:\tNeutral;\t(caf\xe9 \x85)\r\n")
    words = "Ses01F_impro01_F000 [006.2901-008.2357]: Un caf\xe9\x85 please.\r\n: [no id]\r\nM: nor here\r\n"
    (session / "transcriptions" / "Ses01F_impro01.txt").write_bytes(words.encode("latin-1"))
    (session / "transcriptions" / "Ses01M_script01_1b.txt").unlink()
    manifest = read_corpus("iemocap", root)
    assert manifest.rejected == ()
    texts = manifest.utterances["text"].tolist()
    assert texts == ["Un café please.", "", "", ""]


def test_a_wav_without_a_label_and_a_label_without_a_wav(root: Path) -> None:
    wavs = root / "Session1" / "sentences" / "wav" / "Ses01F_impro01"
    (wavs / "Ses01F_impro01_M000.wav").rename(wavs / "Ses01F_impro01_M007.wav")
    manifest = read_corpus("iemocap", root)
    assert len(manifest.utterances) == 3
    found = reasons(manifest)
    folder = "Session1/sentences/wav/Ses01F_impro01"
    assert set(found) == {f"{folder}/Ses01F_impro01_M000.wav", f"{folder}/Ses01F_impro01_M007.wav"}
    assert found[f"{folder}/Ses01F_impro01_M000.wav"].startswith("no-wav: ")
    assert found[f"{folder}/Ses01F_impro01_M007.wav"].startswith("no-label: ")
    assert all("Session1/dialog/EmoEvaluation/Ses01F_impro01.txt" in reason for reason in found.values())


def test_a_missing_label_file_rejects_each_wav_of_its_dialogue(root: Path) -> None:
    (root / "Session1" / "dialog" / "EmoEvaluation" / "Ses01F_impro01.txt").unlink()
    manifest = read_corpus("iemocap", root)
    assert len(manifest.utterances) == 2 and len(manifest.rejected) == 2
    for item in manifest.rejected:
        assert "Session1/dialog/EmoEvaluation/Ses01F_impro01.txt is missing" in item.reason and "2 wavs" in item.reason


def test_a_session_without_its_wav_folder_is_one_entry(root: Path) -> None:
    write_dialogue(root, "Ses02F_impro01", {"F000": "neu"})
    shutil.rmtree(root / "Session2" / "sentences")
    manifest = read_corpus("iemocap", root)
    assert len(manifest.utterances) == 4
    assert list(reasons(manifest)) == ["Session2/sentences/wav"]


def test_damaged_label_lines_are_named_by_number(root: Path) -> None:
    path = root / "Session1" / "dialog" / "EmoEvaluation" / "Ses01F_impro01.txt"
    good = label_line("Ses01F_impro01_F000", "neu")
    path.write_text(f"\n{good}\n[6.2 - 8.2]\tSes01F_impro01_M000\tneu\t[2.5, 2.5]\n{good}\n")
    found = reasons(read_corpus("iemocap", root))
    assert found["Session1/dialog/EmoEvaluation/Ses01F_impro01.txt"].startswith("bad-label: line 3 is '[6.2 - 8.2]")
    assert found["Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_M000.wav"].startswith("no-label: ")


def test_an_utterance_labelled_in_two_ways_is_rejected(root: Path) -> None:
    path = root / "Session1" / "dialog" / "EmoEvaluation" / "Ses01F_impro01.txt"
    path.write_text(path.read_text() + "\n" + label_line("Ses01F_impro01_F000", "sad") + "\n")
    manifest = read_corpus("iemocap", root)
    assert len(manifest.utterances) == 3
    assert "labels it twice, differently; see line" in manifest.rejected[0].reason


def test_names_that_do_not_fit_and_ids_of_another_session(root: Path) -> None:
    wavs = root / "Session1" / "sentences" / "wav"
    write_file(wavs / "Ses01F_impro01" / "Ses01F_impro01_copy.wav", wav_bytes())
    write_file(wavs / "Ses01F_impro01" / "Ses02F_impro01_F000.wav", wav_bytes())
    write_file(wavs / "loose.wav", wav_bytes())
    found = reasons(read_corpus("iemocap", root))
    assert "does not say who speaks" in found["Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_copy.wav"]
    assert "session 2" in found["Session1/sentences/wav/Ses01F_impro01/Ses02F_impro01_F000.wav"]
    assert "no dialogue's folder" in found["Session1/sentences/wav/loose.wav"]


def test_damaged_audio_is_rejected_and_the_rest_goes_on(root: Path) -> None:
    wavs = root / "Session1" / "sentences" / "wav" / "Ses01F_impro01"
    (wavs / "Ses01F_impro01_F000.wav").write_bytes(wav_bytes()[:-100])
    (wavs / "Ses01F_impro01_M000.wav").write_bytes(APPLE_DOUBLE)
    manifest = read_corpus("iemocap", root)
    assert len(manifest.utterances) == 2
    assert [item.reason.split(":")[0] for item in manifest.rejected] == ["truncated", "not-audio"]


def test_the_same_id_in_two_places_rejects_both_and_names_them(root: Path) -> None:
    wavs = root / "Session1" / "sentences" / "wav" / "Ses01F_impro01"
    write_file(wavs / "Ses01F_impro01_F000.flac", wav_bytes(kind="FLAC"))
    manifest = read_corpus("iemocap", root)
    assert len(manifest.utterances) == 3
    found = reasons(manifest)
    folder = "Session1/sentences/wav/Ses01F_impro01"
    assert f"{folder}/Ses01F_impro01_F000.flac" in found[f"{folder}/Ses01F_impro01_F000.wav"]
    assert f"{folder}/Ses01F_impro01_F000.wav" in found[f"{folder}/Ses01F_impro01_F000.flac"]


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="the system has no symbolic links")
def test_links_out_of_the_corpus_are_not_followed(root: Path, tmp_path: Path) -> None:
    outside = write_file(tmp_path / "elsewhere" / "a.wav", wav_bytes())
    wavs = root / "Session1" / "sentences" / "wav" / "Ses01F_impro01"
    for turn, target in (("F000", outside), ("M000", tmp_path / "nothing.wav")):
        (wavs / f"Ses01F_impro01_{turn}.wav").unlink()
        (wavs / f"Ses01F_impro01_{turn}.wav").symlink_to(target)
    (wavs / "more").symlink_to(outside.parent)
    (wavs / "circle").symlink_to(wavs)
    manifest = read_corpus("iemocap", root)
    assert len(manifest.utterances) == 2
    found = {Path(path).name: reason for path, reason in reasons(manifest).items()}
    assert set(found) == {"Ses01F_impro01_F000.wav", "Ses01F_impro01_M000.wav", "more"}
    assert "leads out" in found["Ses01F_impro01_F000.wav"] and "leads out" in found["more"]
    assert "broken" in found["Ses01F_impro01_M000.wav"]


def test_naming_a_session_or_the_parent_says_what_to_name(root: Path) -> None:
    expected = re.escape(str(root))
    with pytest.raises(CorpusError, match=f"this is Session1: name its parent {expected}$"):
        read_corpus("iemocap", root / "Session1")
    with pytest.raises(CorpusError, match=f"lies inside Session1: name its parent {expected}$"):
        read_corpus("iemocap", root / "Session1" / "sentences" / "wav")
    with pytest.raises(CorpusError, match=f"one folder deeper; name {expected}$"):
        read_corpus("iemocap", root.parent)


def test_a_corpus_without_one_label_has_no_utterance(root: Path) -> None:
    for path in (root / "Session1" / "dialog" / "EmoEvaluation").glob("*.txt"):
        path.unlink()
    with pytest.raises(CorpusError, match=r"no utterance of iemocap found; 4 rejected, the first: .*is missing"):
        read_corpus("iemocap", root)
