from __future__ import annotations

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mfhca_cache.errors import FoldError
from mfhca_cache.folds import PROTOCOLS, choose_folds, make_folds, speaker_order


def table(speakers: dict[str, str], each: int = 5, recording: str = "") -> pd.DataFrame:
    """``each`` utterances of every speaker, given as speaker → session."""
    rows = [
        {
            "utterance_id": f"{speaker}-{number}",
            "speaker": speaker,
            "session": session,
            "recording": recording or f"{session}-{number}",
            "text": f"Sentence {number}",
        }
        for speaker, session in speakers.items()
        for number in range(each)
    ]
    return pd.DataFrame(rows)


IEMOCAP = {f"{n}{s}": f"session{n}" for n in range(1, 6) for s in "FM"}


def test_ten_folds_in_the_released_codes_order() -> None:
    folds = make_folds(table(IEMOCAP))
    assert [fold.name for fold in folds] == ["1M", "1F", "2M", "2F", "3M", "3F", "4M", "4F", "5M", "5F"]
    assert [fold.number for fold in folds] == list(range(1, 11))


def test_strict_validates_on_the_sessions_other_speaker() -> None:
    fold = make_folds(table(IEMOCAP))[3]
    assert (fold.test_speakers, fold.validation_speakers) == (("2F",), ("2M",))
    assert {name[:2] for name in fold.train} == set(IEMOCAP) - {"2F", "2M"}
    assert not fold.optimistic


def test_strict_without_sessions_validates_on_the_next_speaker_and_wraps() -> None:
    folds = make_folds(table(dict.fromkeys(["10", "9", "8"], "")))
    assert [(fold.name, *fold.validation_speakers) for fold in folds] == [("8", "9"), ("9", "10"), ("10", "8")]


def test_test_selected_validates_on_the_test_speaker_and_is_marked() -> None:
    for fold in make_folds(table(IEMOCAP), "test-selected"):
        assert fold.validation == fold.test
        assert len(fold.train) == 45
        assert fold.optimistic


def test_session_folds_hold_out_whole_sessions_and_a_fifth_for_validation() -> None:
    folds = make_folds(table(IEMOCAP), "session", seed=3)
    assert [fold.name for fold in folds] == [f"session{n}" for n in range(1, 6)]
    for fold in folds:
        assert (len(fold.test), len(fold.validation), len(fold.train)) == (10, 8, 32)
        assert not set(fold.validation) & set(fold.train)
    assert folds == make_folds(table(IEMOCAP), "session", seed=3)
    assert folds != make_folds(table(IEMOCAP), "session", seed=4)


def test_session_folds_without_sessions_are_five_groups_of_speakers() -> None:
    folds = make_folds(table(dict.fromkeys([f"{n:02d}" for n in range(1, 13)], "")), "session")
    assert [fold.name for fold in folds] == ["group1", "group2", "group3", "group4", "group5"]
    assert [fold.test_speakers for fold in folds][:2] == [("01", "02", "03"), ("04", "05", "06")]


@given(
    st.dictionaries(st.from_regex(r"[A-C]?[0-9]{1,2}", fullmatch=True), st.sampled_from(["a", "b", "c"]), min_size=3),
    st.booleans(),
    st.sampled_from(PROTOCOLS),
    st.integers(0, 9),
)
def test_no_test_speaker_is_ever_in_training(
    speakers: dict[str, str], sessions: bool, protocol: str, seed: int
) -> None:
    if not sessions or len(set(speakers.values())) < 2:
        speakers = dict.fromkeys(speakers, "")
    rows = table(speakers)
    folds = make_folds(rows, protocol, seed)
    whose = dict(zip(rows["utterance_id"], rows["speaker"], strict=True))
    for fold in folds:
        assert not {whose[name] for name in fold.train} & {whose[name] for name in fold.test}
        assert not set(fold.train) & set(fold.validation)
        assert fold.train and fold.validation and fold.test
    assert sorted(name for fold in folds for name in fold.test) == sorted(rows["utterance_id"])


def test_a_speaker_in_two_sessions_is_refused_where_it_would_leak() -> None:
    rows = table({"a": "x", "b": "y"})
    rows.loc[0, "session"] = "y"
    with pytest.raises(FoldError, match=r"speaker.*a.*both test and training"):
        make_folds(rows, "session")


def test_overlaps_are_counted() -> None:
    overlaps = make_folds(table(IEMOCAP))[0].overlaps
    assert overlaps == {
        "test utterances whose recording is in validation": 5,
        "test utterances whose text is in training": 5,
    }
    leaky = make_folds(table(IEMOCAP, recording="one"))[0].overlaps
    assert leaky["test utterances whose recording is in training"] == 5
    seen = make_folds(table(IEMOCAP), "session")[0].overlaps
    assert seen["validation utterances whose speaker is in training"] == 8


def test_folds_are_chosen_by_number_or_name() -> None:
    folds = make_folds(table(IEMOCAP))
    assert choose_folds(folds, 4) == choose_folds(folds, "4") == choose_folds(folds, "2f") == [folds[3]]
    assert choose_folds(folds, "all") == folds
    with pytest.raises(FoldError, match=r"fold '11' is not known.*1 \(1M\), 2 \(1F\)"):
        choose_folds(folds, "11")


def test_a_number_is_a_folds_number_before_it_is_a_speaker() -> None:
    folds = make_folds(table(dict.fromkeys(["03", "08", "1001"], "")))
    assert choose_folds(folds, "3")[0].name == "1001"
    assert choose_folds(folds, "03")[0].name == "03"
    assert choose_folds(folds, "1001")[0].number == 3


def test_too_few_speakers_and_unknown_protocols_are_refused() -> None:
    with pytest.raises(FoldError, match=r"strict needs at least 3 speakers; got 2 \(a, b\)"):
        make_folds(table({"a": "", "b": ""}))
    with pytest.raises(FoldError, match="expected one of strict, test-selected, session"):
        make_folds(table(IEMOCAP), "loso")


def test_speakers_are_in_natural_order() -> None:
    assert speaker_order(table(dict.fromkeys(["s10", "s2", "s1"], ""))) == ["s1", "s2", "s10"]
