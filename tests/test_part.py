"""`extract --shard k/n`: the jobs of an array share the work and never overlap."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mfhca_cache.errors import MfhcaError
from mfhca_cache.extraction.part import shards_of_part
from mfhca_cache.extraction.pipeline import extract
from mfhca_cache.manifest import Manifest, write_manifest
from mfhca_cache.spec import SpectrogramSpec
from mfhca_cache.storage import layout
from mfhca_cache.storage.cache import open_cache
from mfhca_cache.storage.check import check_cache

from .conftest import TINY, small_corpus
from .test_cli import run
from .test_extract import shard_bytes
from .test_features import bert, of_text, spoken


@pytest.fixture
def little_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three clips a shard: twelve shards a feature."""
    monkeypatch.setattr(layout, "MAX_SHARD_CLIPS", 3)


@pytest.mark.usefixtures("little_shards")
@pytest.mark.parametrize("n", [1, 2, 5, 12, 15])
def test_parts_never_overlap_and_are_everything(small_manifest: Manifest, tmp_path: Path, n: int) -> None:
    extract(small_manifest, tmp_path / "whole", TINY, device="cpu")
    clips = shards = 0
    seen: set[str] = set()
    for k in range(n, 0, -1):
        report = extract(small_manifest, tmp_path / "c", TINY, device="cpu", shard=(k, n))
        assert not seen & set(report.covered)
        seen |= set(report.covered)
        assert (report.shard, report.new_shards, report.new_clips) == ((k, n), len(report.covered), report.clips)
        assert report.rejected == () and report.ok == report.utterances
        clips += report.clips
        shards += report.new_shards
    assert (clips, shards, len(seen)) == (30, 24, 24)
    assert shard_bytes(tmp_path / "c") == shard_bytes(tmp_path / "whole")


@pytest.mark.usefixtures("little_shards")
def test_a_part_is_the_same_whatever_is_there(small_manifest: Manifest, tmp_path: Path) -> None:
    first = extract(small_manifest, tmp_path / "c", TINY, device="cpu", shard=(2, 5)).covered
    extract(small_manifest, tmp_path / "c", TINY, "session2", device="cpu")
    again = extract(small_manifest, tmp_path / "c", TINY, device="cpu", shard=(2, 5))
    assert (again.covered, again.new_shards) == (first, 0)


@pytest.mark.usefixtures("little_shards")
def test_a_part_of_a_split(small_manifest: Manifest, tmp_path: Path) -> None:
    reports = [extract(small_manifest, tmp_path / "c", TINY, "session2", device="cpu", shard=(k, 3)) for k in (1, 2, 3)]
    assert [len(report.covered) for report in reports] == [4, 2, 2]
    assert sum(report.clips for report in reports) == 10
    cache = open_cache(tmp_path / "c")
    assert cache.missing("random-tiny") == {"session1": 4, "session3": 4}


@pytest.mark.usefixtures("little_shards")
def test_a_part_reports_its_own_rejections(tmp_path: Path) -> None:
    manifest = small_corpus(tmp_path / "w", sessions=1)
    (tmp_path / "w" / "Ses01_F000.wav").unlink()
    with_it, without = (extract(manifest, tmp_path / "c", TINY, device="cpu", shard=(k, 4)) for k in (1, 2))
    assert [item.path for item in with_it.rejected] == ["Ses01_F000"]
    assert (with_it.clips, with_it.utterances, with_it.ok) == (2, 3, 2)
    assert without.rejected == ()


def test_features_of_other_widths_are_dealt_out_too(
    small_manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The spectrogram's and the encoder's shards hold different runs of clips."""
    monkeypatch.setattr(layout, "MAX_SHARD_BYTES", 300 * 200 * 2 * 4)
    extract(small_manifest, tmp_path / "whole", TINY, device="cpu")
    cache = open_cache(tmp_path / "whole")
    per_shard = {name: info.clips_per_shard for name, info in cache.features.items()}
    assert per_shard == {"spectrogram": 4, "random-tiny": 25}
    infos, splits = list(cache.features.values()), [split.name for split in cache.plan.splits]
    parts = [shards_of_part(cache.plan, infos, splits, (k, 4)) for k in (1, 2, 3, 4)]
    names = [f"{info.name}/{shard.name}" for part in parts for info, shard in part]
    assert len(names) == len(set(names)) == 3 * (3 + 1)
    for k in (4, 2, 3, 1):
        extract(small_manifest, tmp_path / "c", TINY, device="cpu", shard=(k, 4))
    assert shard_bytes(tmp_path / "c") == shard_bytes(tmp_path / "whole")


def test_transcripts_are_dealt_out_behind_the_clips(small_manifest: Manifest, tmp_path: Path) -> None:
    bert(tmp_path / "bert")
    manifest = spoken(small_manifest, {"Ses02_F000": " "})
    spec = replace(of_text(tmp_path / "bert"), spectrogram=SpectrogramSpec())
    extract(manifest, tmp_path / "whole", spec, device="cpu")
    reports = [extract(manifest, tmp_path / "c", spec, device="cpu", shard=(k, 4)) for k in (1, 2, 3, 4)]
    assert [list(report.covered) for report in reports] == [
        ["spectrogram/session1-0000", "bert/session2-0000"],
        ["spectrogram/session2-0000", "bert/session3-0000"],
        ["spectrogram/session3-0000"],
        ["bert/session1-0000"],
    ]
    assert [(report.utterances, report.clips, len(report.rejected)) for report in reports] == [
        (8, 10, 0), (8, 10, 0), (8, 10, 0), (8, 10, 0),
    ]  # fmt: skip
    assert "1 utterance(s) have no features of their text, such as Ses02_F000" in reports[0].notes[-1]
    assert shard_bytes(tmp_path / "c") == shard_bytes(tmp_path / "whole")


@pytest.mark.parametrize("part", [(0, 8), (9, 8), (1, 0), (-1, 3)])
def test_a_part_that_cannot_be_is_refused(small_manifest: Manifest, tmp_path: Path, part: tuple[int, int]) -> None:
    with pytest.raises(MfhcaError, match=r"expected k/n with 1 ≤ k ≤ n"):
        extract(small_manifest, tmp_path / "c", TINY, shard=part)
    assert not (tmp_path / "c").exists()


RUN = """
import sys
from mfhca_cache.extraction.pipeline import extract
from mfhca_cache.manifest import read_manifest
from mfhca_cache.spec import EncoderSpec, ExtractSpec
from mfhca_cache.spec import SpectrogramSpec
from mfhca_cache.storage import layout
layout.MAX_SHARD_CLIPS = 3
manifest, spec = read_manifest(sys.argv[1]), ExtractSpec(encoder=EncoderSpec("random-tiny"))
print("ready", flush=True)
sys.stdin.readline()
report = extract(manifest, sys.argv[2], spec, shard=(int(sys.argv[3]), 3), device="cpu")
print(report.new_shards, flush=True)
"""


@pytest.mark.usefixtures("little_shards")
def test_all_parts_may_start_at_once_on_an_empty_cache(small_manifest: Manifest, tmp_path: Path) -> None:
    csv = tmp_path / "m.csv"
    write_manifest(small_manifest, csv)
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", RUN, csv, tmp_path / "c", str(k)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for k in (1, 2, 3)
    ]
    for job in jobs:
        assert job.stdout is not None and job.stdout.readline() == "ready\n"
    for job in jobs:
        assert job.stdin is not None
        job.stdin.write("\n")
        job.stdin.flush()
    published = [int(job.communicate(timeout=120)[0]) for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0, 0]
    assert published == [8, 8, 8]
    extract(small_manifest, tmp_path / "whole", TINY, device="cpu")
    assert shard_bytes(tmp_path / "c") == shard_bytes(tmp_path / "whole")
    assert check_cache(tmp_path / "c", deep=True).faults == ()


def test_the_command_says_what_its_part_covers(small_manifest: Manifest, tmp_path: Path) -> None:
    write_manifest(small_manifest, tmp_path / "m.csv")
    words = ("extract", "--manifest", tmp_path / "m.csv", "--cache", tmp_path / "c", "--encoder", "random-tiny")
    text = run(*words, "--shard", "2/3").output
    assert "Part 2 of 3 covers 2 shards: spectrogram/session2-0000 … random-tiny/session2-0000" in text
    assert "8 utterances + 0 rejected = 8; 10 clips" in text
    assert "still missing: session1, session3" in text
    assert "Part 9 of 9 covers nothing" in run(*words, "--shard", "9/9").output
    value = json.loads(run(*words, "--shard", "3/3", "--split", "session1", "--json").output)
    assert (value["shard"], value["covered"], value["utterances"]) == ([3, 3], [], 0)
    for wrong in ("0/3", "4/3", "2", "a/b", "2/", "/3", "1/2/3", "²/3", "-1/3"):
        assert "expected K/N" in run(*words, "--shard", wrong, expect=2).output
