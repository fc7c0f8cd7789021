"""docs/scaling.md is true: its scripts are run as they stand, with a stand-in for SLURM, on a small corpus."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from mfhca_cache.cli.app import mfhca
from mfhca_cache.distributed import train as train_module
from mfhca_cache.manifest import Manifest, write_manifest
from mfhca_cache.storage.layout import MAX_SHARD_BYTES, MAX_SHARD_CLIPS

from .test_extract import shard_bytes

PAGE = (Path(__file__).parents[1] / "docs" / "scaling.md").read_text()
SCRIPTS = re.findall(r"```bash\n(#!/bin/bash\n.*?)```", PAGE, flags=re.DOTALL)
NAMED = dict(re.findall(r"^`([\w-]+\.(?:sbatch|sh))`.*?```bash\n(.*?)```", PAGE, flags=re.DOTALL | re.MULTILINE))

#: What the page's commands mean on a small corpus without HuBERT.
MORE = {
    "extract": ["--encoder", "random-tiny", "--device", "cpu"],
    "train": ["--features", "encoder", "--preset", "frozen", "--epochs", "1"],
}
#: Starting Python and PyTorch for every task would take minutes, so `mfhca` asks this process.
ASK = f"""#!{sys.executable} -S
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect(os.environ["ASK"])
    server.sendall(json.dumps(sys.argv[1:]).encode() + b"\\n")
    answer = json.loads(server.makefile().readline())
sys.stdout.write(answer["output"])
sys.exit(answer["status"])
"""
#: Runs at once what SLURM would queue, and only behind jobs that ended well.
SBATCH = r"""#!/bin/bash
set -euo pipefail
for word in "$@"; do
  case $word in --dependency=afterok:*) grep -qx "${word##*:}" ended ;; esac
done
script=${!#}
job=$((100 + $(wc -l < ended)))
range=$(sed -n 's/^#SBATCH --array=//p' "$script")
top=$TMPDIR
for k in $([ -z "$range" ] || seq "${range%-*}" "${range#*-}"); do
  mkdir -p "$top/$k"
  SLURM_ARRAY_TASK_ID=$k TMPDIR=$top/$k bash "$script" >> "logs/$script.txt" 2>&1
done
[ -n "$range" ] || bash "$script" >> "logs/$script.txt" 2>&1
echo "$job" >> ended
echo "$job"
"""


def test_the_page_has_its_scripts() -> None:
    assert set(NAMED) == {
        "extract.sbatch", "train.sbatch", "report.sbatch", "submit.sh", "extract-apart.sbatch", "merge.sbatch",
    }  # fmt: skip
    assert len(SCRIPTS) == 8


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda text: re.findall(r"job-name=(\S+)|$", text)[0] or "submit")
def test_every_script_is_bash(script: str) -> None:
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "set -euo pipefail" in script


def commands() -> list[str]:
    """Every mfhca command of the page's blocks."""
    return [line.strip() for line in re.findall(r"^(?:    )?(mfhca [^#\n]+)", PAGE, flags=re.MULTILINE)]


@pytest.mark.parametrize("line", commands())
def test_every_command_of_the_page_parses(line: str) -> None:
    for there, here in (("$SLURM_ARRAY_TASK_ID", "7"), ("parts/*", "parts/1 parts/2"), ("$head", "node1")):
        line = line.replace(there, here)
    line = re.sub(r"\$\(\(.*?\)\)", "3", line)
    _, name, *words = shlex.split(line)
    command, context = mfhca.get_command(click.Context(mfhca), name), click.Context(mfhca)
    if isinstance(command, click.Group):
        name, *words = words
        command = command.get_command(context, name)
    assert command is not None
    command.make_context(name, list(words))


@pytest.fixture
def cluster(small_manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as the page has it, with its scripts and a stand-in for SLURM; three parts and six folds."""
    folder = tmp_path / "project"
    for name in ("logs", "manifests", ".venv/bin", "node"):
        (folder / name).mkdir(parents=True)
    write_manifest(small_manifest, folder / "manifests" / "iemocap.csv")
    (folder / "ended").touch()
    (folder / ".venv" / "bin" / "activate").write_text('PATH="$PWD/.venv/bin:$PATH"\n')
    for name, text in (("mfhca", ASK), ("sbatch", SBATCH)):
        (folder / ".venv" / "bin" / name).write_text(text)
        (folder / ".venv" / "bin" / name).chmod(0o755)
    for name, text in NAMED.items():
        (folder / name).write_text(text.replace("1-64", "1-3").replace("/64", "/3").replace("1-10", "1-6"))
    monkeypatch.chdir(folder)
    return folder


def submit(*words: str, **variables: str) -> str:
    """Run a script in bash; this process answers its `mfhca` commands. Its output, and that of its jobs."""
    place = str(Path("ask").absolute())
    path = f"{Path('.venv/bin').absolute()}:{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "ASK": place, "TMPDIR": str(Path("node").absolute()), **variables}
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(place)
        server.listen()
        server.settimeout(0.05)
        process = subprocess.Popen(
            ["bash", *words], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        while process.poll() is None:
            try:
                connection, _ = server.accept()
            except TimeoutError:
                continue
            with connection, connection.makefile() as asked:
                name, *rest = json.loads(asked.readline())
                result = CliRunner().invoke(mfhca, [name, *rest, *MORE.get(name, [])])
                answer = {"status": result.exit_code, "output": result.output}
                connection.sendall(json.dumps(answer).encode() + b"\n")
    Path(place).unlink()
    assert process.stdout is not None
    text = process.stdout.read() + "".join(path.read_text() for path in sorted(Path("logs").iterdir()))
    assert process.returncode == 0, text
    return text


def test_the_array_jobs_extract_train_and_report(
    cluster: Path, small_cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = submit("submit.sh")
    assert "Part 3 of 3 covers 2 shards" in text
    report = (cluster / "logs" / "report.sbatch.txt").read_text()
    assert "pooled" in report and "Not trained yet" not in report
    assert sorted(path.name for path in (cluster / "runs").iterdir()) == ["trial"]
    assert len(list((cluster / "runs" / "trial").glob("fold0?"))) == 6
    assert (cluster / "ended").read_text() == "100\n101\n102\n"
    assert shard_bytes(cluster / "cache" / "iemocap") == shard_bytes(small_cache_folder)
    # A failed job holds back what depends on it.
    assert subprocess.run(
        ["bash", str(cluster / ".venv/bin/sbatch"), "--dependency=afterok:999", "report.sbatch"], check=False
    ).returncode

    (seeds,) = (script for script in SCRIPTS if "mfhca-seeds" in script)
    (cluster / "seeds.sbatch").write_text(seeds)
    for number in ("3", "13"):
        submit("seeds.sbatch", SLURM_ARRAY_TASK_ID=number)
    assert [path.name for path in (cluster / "runs" / "trial-seed1").glob("fold*")] == ["fold04"]

    sent: list[Any] = []
    monkeypatch.setattr(train_module, "train_on_ray", lambda cache, items, **options: sent.extend(items))
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    exec(block, {})
    assert len({item.run for item in sent}) == len(sent) == 10


def test_caches_of_the_nodes_are_merged(cluster: Path, small_cache_folder: Path) -> None:
    text = submit(str(cluster / ".venv/bin/sbatch"), "extract-apart.sbatch")
    assert "took 2 shards" in text
    assert sorted(path.name for path in (cluster / "parts").iterdir()) == ["1", "2", "3"]
    text = submit(str(cluster / ".venv/bin/sbatch"), "--dependency=afterok:100", "merge.sbatch")
    assert "took 6 shards" in text
    assert shard_bytes(cluster / "cache" / "iemocap") == shard_bytes(small_cache_folder)


def test_the_arithmetic_on_paper_is_right() -> None:
    clips = 10_000 * 3600 / 3
    spectrogram, hubert = 300 * 200 * 2, 149 * 768 * 2
    assert (clips, MAX_SHARD_CLIPS, MAX_SHARD_BYTES // hubert > MAX_SHARD_CLIPS) == (12e6, 512, True)
    for words in (
        f"{clips * 96_000 / 1e12:.2f} TB",
        f"{clips * spectrogram / 1e12:.2f} TB",
        f"{clips * hubert / 1e12:.2f} TB",
        f"{512 * spectrogram / 1e6:.0f} MB and {512 * hubert / 1e6:.0f} MB",
        f"{2 * -(-clips // 512):,.0f}",
        f"{clips * 42.4e9 / 1e15:.0f} PFLOP",
        f"{clips * 42.4e9 / 40e12 / 100:.0f} s of a hundred",
        f"{clips * 96_000 / 127 / 1e9:.0f} GB/s must be read",
        f"{clips * (spectrogram + hubert) / 127 / 1e9:.0f} GB/s written",
        f"{clips * (spectrogram + hubert) / 5e9 / 60:.0f} minutes",
        f"{(spectrogram + hubert) / 1e3:.0f} kB a clip",
    ):
        assert words in PAGE, words


def test_the_size_of_the_largest_table_is_the_one_that_the_page_says() -> None:
    from mfhca_cache.manifest import MAX_TABLE_BYTES

    assert f"{MAX_TABLE_BYTES / 2**20:.0f} MiB" in PAGE
