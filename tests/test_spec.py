from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mfhca_cache.errors import MfhcaError
from mfhca_cache.spec import (
    ClipSpec,
    EncoderSpec,
    ExtractSpec,
    SpectrogramSpec,
    canonical_json,
    differences,
    fingerprint,
    settings,
)


def test_the_papers_numbers() -> None:
    assert ClipSpec().samples == 48_000
    assert SpectrogramSpec().frames(48_000) == 300
    assert EncoderSpec().feature == "hubert-base-ls960"
    assert ExtractSpec().rows == "four-class" and ExtractSpec().dtype == "float16"


@pytest.mark.parametrize(
    ("samples", "clips"), [(1, 1), (47_999, 1), (48_000, 1), (48_001, 2), (96_000, 2), (545_600, 12)]
)
def test_clips_of_an_utterance(samples: int, clips: int) -> None:
    assert ClipSpec().count(samples) == clips


@given(st.integers(1, 1200 * 16_000), st.floats(0.1, 60))
def test_clips_hold_each_sample_once(samples: int, seconds: float) -> None:
    clip = ClipSpec(seconds)
    count = clip.count(samples)
    assert count == math.ceil(samples / clip.samples)
    valid = [clip.valid_samples(samples, 0), clip.valid_samples(samples, count - 1)]
    assert sum(valid[:count]) + max(0, count - 2) * clip.samples == samples
    assert all(1 <= one <= clip.samples for one in valid)


@pytest.mark.parametrize("seconds", [0, 0.09, -3, 61, math.nan, math.inf])
def test_impossible_clips(seconds: float) -> None:
    with pytest.raises(MfhcaError, match=r"clip length: got .* expected 0.1 to 60 s"):
        ClipSpec(seconds)


@pytest.mark.parametrize(
    "wrong",
    [
        {"hop": 0},
        {"hop": 641},
        {"window": 801},
        {"bins": 402},
        {"bins": 0},
        {"pre_emphasis": 1.0},
        {"pre_emphasis": -0.1},
    ],
)
def test_impossible_spectrograms(wrong: dict[str, float]) -> None:
    with pytest.raises(MfhcaError, match="expected 0"):
        SpectrogramSpec(**wrong)  # type: ignore[arg-type]


def test_other_choices_are_refused() -> None:
    with pytest.raises(MfhcaError, match="pad: got 'zeros'"):
        ClipSpec(pad="zeros")  # type: ignore[arg-type]
    with pytest.raises(MfhcaError, match="rows: got 'some'"):
        ExtractSpec(rows="some")  # type: ignore[arg-type]
    with pytest.raises(MfhcaError, match="dtype: got 'bfloat16'; expected one of float16, float32"):
        ExtractSpec(dtype="bfloat16")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "revision", "feature"),
    [
        ("facebook/hubert-base-ls960", None, "hubert-base-ls960"),
        ("facebook/hubert-base-ls960", "0123456789abcdef0123456789abcdef01234567", "hubert-base-ls960@0123456789ab"),
        ("/models/my model/", None, "my-model"),
        ("C:\\models\\mine", None, "mine"),
        ("org/.hidden", None, "hidden"),
        ("org/modèle", None, "mod-le"),
        ("org/model", "refs/pr/1", "model@refs-pr-1"),
        ("org/model", "../../etc", "model@etc"),
    ],
)
def test_the_folder_of_a_feature(name: str, revision: str | None, feature: str) -> None:
    assert EncoderSpec(name, revision).feature == feature


@given(st.text(max_size=40), st.none() | st.text(max_size=40))
def test_the_folder_of_a_feature_is_one_plain_name(name: str, revision: str | None) -> None:
    try:
        feature = EncoderSpec(name, revision).feature
    except MfhcaError:
        return
    assert feature.isascii() and feature[0] not in ".-" and feature != "spectrogram"
    assert not set(feature) & set('/\\ :*?"<>|\0')


@pytest.mark.parametrize("name", ["", "/", "..", "org/...", "spectrogram"])
def test_names_that_make_no_folder(name: str) -> None:
    with pytest.raises(MfhcaError, match="no usable folder name"):
        _ = EncoderSpec(name).feature


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
).filter(lambda value: "\\ud" not in json.dumps(value))


@given(JSON)
def test_fingerprints_depend_on_the_value_alone(value: object) -> None:
    again = json.loads(json.dumps(value))
    assert fingerprint(again) == fingerprint(value) and len(fingerprint(value)) == 64
    assert json.loads(canonical_json(value)) == again
    assert differences(value, again) == []


def test_fingerprints_do_not_depend_on_the_order_of_keys() -> None:
    assert (
        fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1}) != fingerprint({"a": 1, "b": [2, 1]})
    )
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"a": math.nan})


def test_differences_name_each_leaf() -> None:
    before = settings(ExtractSpec())
    now = settings(ExtractSpec(clip=ClipSpec(4.0), dtype="float32", encoder=None))
    assert differences(before, now) == [
        "clip.seconds: 3.0 → 4.0",
        "dtype: 'float16' → 'float32'",
        f"encoder: {settings(EncoderSpec())} → None",
    ]
    assert differences({}, {"a": 1}) == ["a: None → 1"]
