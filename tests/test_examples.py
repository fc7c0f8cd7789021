"""The examples run as a researcher would run them, and do what they say."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from mfhca_cache.storage.cache import open_cache
from mfhca_cache.training.options import TrainOptions
from mfhca_cache.training.trainer import train_fold

from .features import add_feature

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(small_cache_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with a feature of three layers and one averaged over time; the second layer tells the label."""
    folder = Path(shutil.copytree(small_cache_folder, tmp_path_factory.mktemp("examples") / "cache"))
    add_feature(folder, "layers", (3, 20, 8), layer=1, layers="all")
    add_feature(folder, "means", (3, 16), layers="all", pool="mean")
    return folder


def run(name: str, *words: object, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_examples_are_short() -> None:
    for path in (ROOT / "examples").glob("*.py"):
        assert len(path.read_text().splitlines()) <= 45, path
        assert path.name == "own_model.py" or "CACHE" in path.read_text()


def test_the_probe_finds_the_layer_that_tells_the_label(folder: Path, tmp_path: Path) -> None:
    text = run("linear_probe.py", folder, "layers", cwd=tmp_path)
    weights = [[float(x) for x in found.split(", ")] for found in re.findall(r"layers \[(.*)\]", text)]
    assert len(weights) == 3
    for three in weights:
        assert sum(three) == pytest.approx(1, abs=0.01) and three.index(max(three)) == 1


def test_the_probe_takes_a_feature_of_one_layer(small_cache_folder: Path, tmp_path: Path) -> None:
    text = run("linear_probe.py", small_cache_folder, cwd=tmp_path)
    assert text.count("layers [1.0]") == 3 and text.startswith("session1: UA 0.")


@pytest.mark.parametrize("feature", ["layers", "means", "random-tiny"])
def test_the_svm_leaves_one_speaker_out(folder: Path, tmp_path: Path, feature: str) -> None:
    lines = run("svm.py", folder, feature, cwd=tmp_path).splitlines()
    assert [line.split(":")[0] for line in lines[:-1]] == [
        f"fold {n} ({name})" for n, name in enumerate(("1M", "1F", "2M", "2F", "3M", "3F"), start=1)
    ]
    assert lines[-1].endswith("over 6 speakers")
    if feature == "layers":
        assert float(lines[-1].split()[1]) > 0.9


def test_the_plain_loop_learns(small_cache_folder: Path, tmp_path: Path) -> None:
    lines = run("plain_loop.py", small_cache_folder, "random-tiny", cwd=tmp_path).splitlines()
    assert len(lines) == 5
    losses = [float(re.findall(r"loss ([\d.]+)", line)[0]) for line in lines]
    assert losses[-1] < losses[0]


def test_the_own_model_trains(folder: Path) -> None:
    options = TrainOptions("examples.own_model:MeanPool", "spectrogram+random-tiny", epochs=1)
    result = train_fold(open_cache(folder), 1, options, device="cpu")
    assert result.record["model_source"]["file"] == str(ROOT / "examples" / "own_model.py")


def test_the_five_lines_of_the_page_run(small_cache_folder: Path) -> None:
    page = (ROOT / "docs" / "own-model.md").read_text()
    block = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)[-1]
    assert len(block.strip().splitlines()) == 5
    for there, here in (("cache/iemocap", str(small_cache_folder)), ("hubert-base-ls960", "random-tiny")):
        assert there in block
        block = block.replace(there, here)

    class Model(nn.Module):
        def forward(self, values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            assert values.shape[1:] == (149, 64) and mask.shape == values.shape[:2]
            return values.mean(1)[:, :4]

    names: dict[str, object] = {"model": Model(), "classes": ["ang", "hap", "neu", "sad"]}
    exec(
        "import mfhca_cache, torch\nfrom torch.utils.data import DataLoader\n"
        "from torch.nn.functional import cross_entropy\n" + block,
        names,
    )
    assert torch.isfinite(names["loss"])  # type: ignore[call-overload]
