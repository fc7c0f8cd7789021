from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mfhca_cache.corpora import CORPORA, emodb, iemocap, ravdess, read_corpus, synthetic
from mfhca_cache.corpora.common import audio_files
from mfhca_cache.errors import CorpusError
from mfhca_cache.labels import class_map
from mfhca_cache.manifest import Manifest, Rejected, read_manifest, write_manifest

from .trees import APPLE_DOUBLE, wav_bytes, write_dialogue, write_file

WAV = wav_bytes()
NOT_ROOT = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads every folder")


def reasons(manifest: Manifest) -> dict[str, str]:
    return {item.path: item.reason for item in manifest.rejected}


def folder_of(root: Path, *names: str) -> Path:
    for index, name in enumerate(names):
        write_file(root / name, wav_bytes(seed=index))
    return root


def test_names_in_order() -> None:
    assert CORPORA == ("iemocap", "emodb", "ravdess", "cremad", "table", "synthetic")


def test_importing_the_readers_loads_no_heavy_library() -> None:
    heavy = "{'torch', 'transformers', 'h5py', 'librosa', 'scipy.signal'}"
    code = f"import sys, mfhca_cache.corpora; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Which files are audio


def test_audio_files_are_found_in_natural_order_without_hidden_ones(tmp_path: Path) -> None:
    folder_of(
        tmp_path, "s10.wav", "s2.WAV", "deep/er/s1.flac", "._s3.wav", ".DS_Store", ".git/x.wav", "a.txt", "b.wav/c.wav"
    )
    found = [path.relative_to(tmp_path).as_posix() for path in audio_files(tmp_path)]
    assert found == ["b.wav/c.wav", "deep/er/s1.flac", "s2.WAV", "s10.wav"]


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="the system has no symbolic links")
def test_links_inside_the_corpus_are_followed_and_others_are_named(tmp_path: Path) -> None:
    root = tmp_path / "corpus"
    outside = write_file(tmp_path / "outside.wav", WAV)
    folder_of(root, "store/03a01Fa.wav", "empty/.keep")
    (root / "03a01Na.wav").symlink_to(root / "store" / "03a01Fa.wav")
    (root / "03a01Wa.wav").symlink_to(outside)
    (root / "out").symlink_to(tmp_path)
    rejected: list[Rejected] = []
    found = [path.name for path in audio_files(root, root, rejected)]
    assert found == ["03a01Na.wav", "03a01Fa.wav"]
    assert {item.path for item in rejected} == {"03a01Wa.wav", "out"}
    rejected.clear()
    assert audio_files(root / "out", root, rejected) == []
    assert [item.path for item in rejected] == ["out"]


@NOT_ROOT
def test_a_folder_without_permission_is_named(tmp_path: Path) -> None:
    folder_of(tmp_path, "03a01Fa.wav", "closed/03a01Na.wav")
    (tmp_path / "closed").chmod(0)
    try:
        manifest = read_corpus("emodb", tmp_path)
    finally:
        (tmp_path / "closed").chmod(0o755)
    assert len(manifest.utterances) == 1
    assert reasons(manifest)["closed"].startswith("unreadable: ")


@NOT_ROOT
def test_hints_do_not_stumble_over_a_closed_folder(tmp_path: Path) -> None:
    folder_of(tmp_path, "lost+found/x.wav", "x.txt")
    (tmp_path / "lost+found").chmod(0)
    try:
        for name in CORPORA:
            with pytest.raises(CorpusError, match=str(tmp_path)):
                read_corpus(name, tmp_path)
            with pytest.raises(CorpusError, match="cannot be read"):
                read_corpus(name, tmp_path / "lost+found")
    finally:
        (tmp_path / "lost+found").chmod(0o755)


# Emo-DB


@pytest.mark.parametrize("sub", ["", "wav/"])
def test_emodb(tmp_path: Path, sub: str) -> None:
    folder_of(
        tmp_path,
        f"{sub}03a01Fa.wav",
        f"{sub}16b10Wb.wav",
        f"{sub}08a04Nc.wav",
        f"{sub}14b01Tb.wav",
        f"{sub}._03a01Fa.wav",
    )
    manifest = read_corpus("emodb", tmp_path)
    assert manifest.rejected == ()
    rows = manifest.utterances.set_index("utterance_id")
    assert rows["speaker"].to_dict() == {"03a01Fa": "03", "08a04Nc": "08", "14b01Tb": "14", "16b10Wb": "16"}
    assert rows["label"].tolist() == ["F", "N", "T", "W"]
    assert rows["text"].iloc[1] == "Heute abend könnte ich es ihm sagen."
    assert rows["path"].iloc[0] == f"{sub}03a01Fa.wav"
    assert set(rows["recording"]) == set(rows["session"]) == {""}
    assert rows["valence"].isna().all()
    classes = class_map("four-class", "emodb", manifest.utterances["label"]).apply(rows["label"])
    assert classes.tolist() == ["happy", "neutral", "sad", "angry"]


def test_emodb_names_what_does_not_fit(tmp_path: Path) -> None:
    folder_of(tmp_path, "03a01Fa.wav", "3a01Fa.wav", "03a01Xa.wav", "03c01Fa.wav")
    found = reasons(read_corpus("emodb", tmp_path))
    assert set(found) == {"3a01Fa.wav", "03a01Xa.wav", "03c01Fa.wav"}
    assert all(reason.startswith("name: expected such as 03a01Fa.wav") for reason in found.values())


# RAVDESS


def test_ravdess(tmp_path: Path) -> None:
    folder_of(
        tmp_path,
        "Actor_12/03-01-05-02-01-02-12.wav",
        "Actor_01/03-01-08-01-02-01-01.wav",
        "Actor_01/03-02-03-01-02-01-01.wav",
        "Actor_01/02-01-03-01-02-01-01.mp3",
        "Actor_01/01-01-03-01-02-01-01.wav",
        "Actor_01/03-01-09-01-02-01-01.wav",
        "Actor_01/03-01-03-01-02-01-25.wav",
        "Actor_01/notes.wav",
    )
    manifest = read_corpus("ravdess", tmp_path)
    rows = manifest.utterances
    assert rows["utterance_id"].tolist() == ["03-01-05-02-01-02-12", "03-01-08-01-02-01-01"]
    assert rows["speaker"].tolist() == ["12", "01"] and rows["label"].tolist() == ["05", "08"]
    assert rows["text"].tolist() == ["Kids are talking by the door", "Dogs are sitting by the door"]
    found = {Path(path).name: reason for path, reason in reasons(manifest).items()}
    assert found["03-02-03-01-02-01-01.wav"] == "channel: song, not speech"
    assert found["02-01-03-01-02-01-01.mp3"] == "modality: video without sound, not audio only"
    assert found["01-01-03-01-02-01-01.wav"] == "modality: video with sound, not audio only"
    for name in ("03-01-09-01-02-01-01.wav", "03-01-03-01-02-01-25.wav", "notes.wav"):
        assert "modality-channel-emotion" in found[name]


def test_a_second_copy_of_the_folder_is_named_on_both_sides(tmp_path: Path) -> None:
    one, two = "Actor_01/03-01-05-02-01-02-01.wav", "copy/Actor_01/03-01-05-02-01-02-01.wav"
    folder_of(tmp_path, one, two, "Actor_01/03-01-05-02-01-01-01.wav")
    manifest = read_corpus("ravdess", tmp_path)
    assert len(manifest.utterances) == 1
    found = reasons(manifest)
    assert two in found[one] and one in found[two]
    assert all(reason.startswith("duplicate: ") for reason in found.values())


# CREMA-D


@pytest.mark.parametrize("sub", ["", "AudioWAV/"])
def test_cremad(tmp_path: Path, sub: str) -> None:
    folder_of(
        tmp_path,
        f"{sub}1001_DFA_ANG_XX.wav",
        f"{sub}1040_ITH_SAD_X.wav",
        f"{sub}1091_WSI_HAP_HI.wav",
        f"{sub}1001_AAA_ANG_XX.wav",
    )
    if sub:
        folder_of(tmp_path, "AudioMP3/1001_DFA_ANG_XX.mp3")
    write_file(
        tmp_path / sub / "1002_TIE_NEU_XX.wav", "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    )
    manifest = read_corpus("cremad", tmp_path)
    rows = manifest.utterances
    assert rows["speaker"].tolist() == ["1001", "1040", "1091"] and rows["label"].tolist() == ["ANG", "SAD", "HAP"]
    assert rows["text"].iloc[0] == "Don't forget a jacket"
    found = reasons(manifest)
    assert "actor, sentence, emotion, level" in found[f"{sub}1001_AAA_ANG_XX.wav"]
    assert "git lfs pull" in found[f"{sub}1002_TIE_NEU_XX.wav"]
    assert len(found) == 2


# A table


def write_table(root: Path, *lines: str, name: str = "mine.csv") -> Path:
    return write_file(root / name, "\n".join(lines) + "\n")


def test_table_by_its_csv_and_by_its_folder(tmp_path: Path) -> None:
    folder_of(tmp_path, "a/x.wav", "a/y.flac.wav", "b/x.wav")
    csv = write_table(
        tmp_path, "path, speaker, label", "a/x.wav, s1, angry", "a/y.flac.wav,s1,sad", '"b/x.wav","s2","Happy"'
    )
    by_csv, by_folder = read_corpus("table", csv), read_corpus("table", tmp_path)
    assert by_csv.root == tmp_path and by_csv.rejected == ()
    assert by_csv.utterances.equals(by_folder.utterances)
    assert by_csv.utterances["utterance_id"].tolist() == ["a/x", "a/y.flac", "b/x"]
    assert by_csv.utterances["label"].tolist() == ["angry", "sad", "Happy"]
    assert class_map("four-class", "table", by_csv.utterances["label"]).labels["happy"] == ("Happy",)


def test_table_with_every_column(tmp_path: Path) -> None:
    folder_of(tmp_path, "x.wav", "y.wav")
    write_table(
        tmp_path,
        "label,speaker,path,session,utterance_id,text,recording,valence,arousal,dominance,mood",
        'sad,s1,x.wav,Session1,u1,"Yes, ""so""\nit is # here",r1,1.5,,3,low',
        "sad,s2,y.wav,,,,,,,,",
    )
    rows = read_corpus("table", tmp_path).utterances.set_index("utterance_id")
    row = rows.loc["u1"]
    assert row["session"] == "session1" and row["recording"] == "r1" and row["text"] == 'Yes, "so"\nit is # here'
    assert row["valence"] == 1.5 and row["arousal"] != row["arousal"] and row["dominance"] == 3.0
    assert rows.loc["y", "session"] == "" and "mood" not in rows.columns


def test_table_rejects_bad_rows_with_their_number(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "corpus", "good.wav", "other.wav", "third.wav", "fourth.wav")
    write_file(tmp_path / "outside.wav", WAV)
    write_file(root / "short.wav", WAV[:-50])
    (root / "folder").mkdir()
    long = "x" * 300 + ".wav"
    write_table(
        root,
        "path,speaker,label,session,valence",
        "good.wav,s1,sad,,",
        "missing.wav,s1,sad,,",
        "short.wav,s1,sad,,",
        "other.wav,,sad,,",
        "other.wav,s1,,,",
        ",s1,sad,,",
        f"{root.as_posix()}/good.wav,s1,sad,,",
        "../outside.wav,s1,sad,,",
        "folder,s1,sad,,",
        "a\\b.wav,s1,sad,,",
        "third.wav,s1,sad,Session 1,",
        "third.wav,s1,sad,all,",
        "fourth.wav,s1,sad,,much",
        "fourth.wav,s1,sad,,nan",
        f"{long},s1,sad,,",
        "other.wav",
    )
    manifest = read_corpus("table", root)
    assert manifest.utterances["path"].tolist() == ["good.wav"]
    by_row = {item.reason.rsplit("(row ", 1)[1].rstrip(")"): item for item in manifest.rejected}
    assert sorted(by_row, key=int) == [str(row) for row in range(3, 18)]
    expected = {
        "3": "missing: ", "4": "truncated: ", "5": "bad-row: the speaker is empty", "6": "bad-row: the label is empty",
        "7": "bad-row: the path is empty", "8": "bad-row: the path is absolute", "9": "bad-row: the path is absolute",
        "10": "not-audio: ", "11": "bad-row: got a backslash", "12": "bad-row: got the session 'Session 1'",
        "13": "bad-row: got the session 'all'", "14": "bad-row: got the valence 'much'",
        "15": "bad-row: got the valence 'nan'", "17": "bad-row: the speaker is empty",
    }  # fmt: skip
    for row, start in expected.items():
        assert by_row[row].reason.startswith(start), by_row[row]
    assert by_row["7"].path == "mine.csv"


def test_table_rows_with_one_id_are_all_rejected(tmp_path: Path) -> None:
    folder_of(tmp_path, "x.wav", "y.wav", "z.wav", "w.wav")
    write_table(tmp_path, "path,speaker,label,utterance_id", "x.wav,s,a,1", "y.wav,s,a,1", "z.wav,s,a,2", "w.wav,s,a,1")
    manifest = read_corpus("table", tmp_path)
    assert manifest.utterances["utterance_id"].tolist() == ["2"]
    assert "the id '1' is also that of y.wav and 1 more" in reasons(manifest)["x.wav"]
    assert "(row 2)" in reasons(manifest)["x.wav"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes")
def test_table_naming_a_pipe_does_not_wait_for_it(tmp_path: Path) -> None:
    folder_of(tmp_path, "x.wav")
    os.mkfifo(tmp_path / "pipe.wav")
    write_table(tmp_path, "path,speaker,label", "x.wav,s,a", "pipe.wav,s,a")
    assert reasons(read_corpus("table", tmp_path))["pipe.wav"].startswith("not-audio: ")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"a.csv": "path,speaker\nx.wav,s\n"},
            "got the columns path, speaker; label is missing; expected path, speaker, label",
        ),
        ({"a.csv": "file,who\nx.wav,s\n"}, "path, speaker, label are missing"),
        (
            {"a.csv": "path,speaker,label\n", "b.csv": "path,speaker,label\n"},
            r"got 2 \(a.csv, b.csv\); name the one meant",
        ),
        ({"a.txt": "path,speaker,label\n"}, "got none; expected a CSV"),
        ({"a.csv": "path,speaker,label\n"}, "no utterance of table found"),
        ({"a.csv": "path,speaker,label\nx.wav,s,a,\n"}, "more cells than the header"),
        ({"a.csv": "path,speaker,label, path\nx.wav,s,a,b\n"}, "a column's name is there twice"),
        ({"a.csv": b"path,speaker,label\n\xff\xfe.wav,s,a\n"}, "not readable as a CSV table in UTF-8"),
        ({"a.csv": "path,speaker,label\nx.wav,s,a\n"}, "1 rejected, the first: x.wav: missing: .* \\(row 2\\)"),
    ],
)
def test_tables_that_cannot_be_read(tmp_path: Path, files: dict[str, str | bytes], message: str) -> None:
    for name, data in files.items():
        write_file(tmp_path / name, data)
    with pytest.raises(CorpusError, match=message):
        read_corpus("table", tmp_path)


def test_a_spreadsheets_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    folder_of(tmp_path, "x.wav")
    write_file(tmp_path / "a.csv", "path,speaker,label\nx.wav,s,a\n".encode("utf-8-sig"))
    assert len(read_corpus("table", tmp_path).utterances) == 1


# Roots that are not what they are taken for


def test_an_unknown_corpus_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(
        CorpusError, match="'iemo' is not known; expected one of iemocap, emodb, ravdess, cremad, table"
    ):
        read_corpus("iemo", tmp_path)


@pytest.mark.parametrize("name", CORPORA)
def test_a_missing_an_empty_and_a_useless_root(tmp_path: Path, name: str) -> None:
    with pytest.raises(CorpusError, match="no such folder; expected"):
        read_corpus(name, tmp_path / "nothing")
    with pytest.raises(CorpusError, match="the folder is empty; expected"):
        read_corpus(name, tmp_path)
    archive = write_file(tmp_path / "IEMOCAP.tar.gz", b"x")
    with pytest.raises(CorpusError, match="is a file; unpack it"):
        read_corpus(name, archive)
    with pytest.raises(CorpusError, match=str(tmp_path)):
        read_corpus(name, tmp_path)


def test_the_wrong_corpus_is_named(tmp_path: Path) -> None:
    roots = {
        "emodb": folder_of(tmp_path / "e", "wav/03a01Fa.wav"),
        "ravdess": folder_of(tmp_path / "r", "Actor_12/03-01-05-02-01-02-12.wav"),
        "cremad": folder_of(tmp_path / "c", "AudioWAV/1001_DFA_ANG_XX.wav"),
        "table": write_table(tmp_path / "t", "path,speaker,label", "x.wav,s,a").parent,
        "synthetic": tmp_path / "s",
        "iemocap": tmp_path / "i",
    }
    synthetic.write_corpus(roots["synthetic"], 4)
    write_dialogue(roots["iemocap"], "Ses01F_impro01", {"F000": "neu"})
    for name in CORPORA:
        for other, root in roots.items():
            if other != name:
                with pytest.raises(CorpusError, match=f"looks like {other}, not like {name}; read it as {other}"):
                    read_corpus(name, root)


def test_a_corpus_one_folder_deeper_is_named(tmp_path: Path) -> None:
    folder_of(tmp_path, "data/emodb/wav/03a01Fa.wav", "data/ravdess/Actor_12/03-01-05-02-01-02-12.wav")
    with pytest.raises(CorpusError, match=r"emodb lies one folder deeper; name .*emodb"):
        read_corpus("emodb", tmp_path / "data")


def test_only_damaged_files_are_an_error_that_says_why(tmp_path: Path) -> None:
    write_file(tmp_path / "03a01Fa.wav", APPLE_DOUBLE)
    write_file(tmp_path / "03a01Na.wav", b"")
    with pytest.raises(
        CorpusError, match=r"no utterance of emodb found; 2 rejected, the first: 03a01Fa.wav: not-audio"
    ):
        read_corpus("emodb", tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not allow such names")
def test_file_names_that_no_table_can_hold(tmp_path: Path) -> None:
    folder_of(tmp_path, "Actor_12/03-01-05-02-01-02-12.wav", "a\\b/03-01-05-02-01-01-12.wav")
    write_file(tmp_path / os.fsdecode(b"Actor_\xff") / "03-01-05-02-02-01-12.wav", WAV)
    manifest = read_corpus("ravdess", tmp_path)
    assert len(manifest.utterances) == 1
    assert set(reasons(manifest)) == {"Actor_\\udcff/03-01-05-02-02-01-12.wav", "a\\b/03-01-05-02-01-01-12.wav"}
    assert all(reason.startswith("name: ") for reason in reasons(manifest).values())
    write_manifest(manifest, tmp_path / "m.csv")
    assert read_manifest(tmp_path / "m.csv").rejected == manifest.rejected


# Real speech


def test_real_emodb(real_speech: Path) -> None:
    manifest = read_corpus("emodb", real_speech / "emodb")
    assert len(manifest.utterances) == 535 and manifest.rejected == ()
    assert manifest.utterances["speaker"].nunique() == 10
    assert (manifest.utterances["sample_rate"] == 22_050).all() and (manifest.utterances["seconds"] == 2.0).all()
    classes = class_map("four-class", "emodb", manifest.utterances["label"]).apply(manifest.utterances["label"])
    assert classes.value_counts().to_dict() == {"angry": 127, "neutral": 79, "happy": 71, "sad": 62}
    assert (manifest.utterances["text"] != "").all()


def test_real_ravdess(real_speech: Path) -> None:
    manifest = read_corpus("ravdess", real_speech / "ravdess")
    assert len(manifest.utterances) == 56 and manifest.rejected == ()
    assert sorted(set(manifest.utterances["speaker"])) == ["01", "02", "03", "04"]
    assert (manifest.utterances["sample_rate"] == 48_000).all()


def test_real_corpora_are_told_apart(real_speech: Path) -> None:
    assert emodb.looks_like(real_speech / "emodb") and not emodb.looks_like(real_speech / "ravdess")
    assert ravdess.looks_like(real_speech / "ravdess") and not ravdess.looks_like(real_speech / "emodb")
    assert not iemocap.looks_like(real_speech / "emodb") and not iemocap.looks_like(real_speech)
