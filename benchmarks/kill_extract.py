"""Kill `mfhca extract` with SIGKILL at random moments, then let it finish, and compare with an undisturbed run.

Counts committed shards that were lost (must be none), and compares every finished cache with the calm one byte for
byte. A cache that is complete after a kill is compared, removed and begun again, so that every kill hits work to do.
Exit status 1 if anything differs.

    python benchmarks/kill_extract.py --kills 20
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mfhca_cache.corpora import read_corpus
from mfhca_cache.corpora.synthetic import write_corpus
from mfhca_cache.manifest import write_manifest
from mfhca_cache.storage.cache import open_cache


def start(table: Path, cache: Path) -> subprocess.Popen[bytes]:
    """`mfhca extract` in a process of its own."""
    words = ["extract", "--quiet", "--manifest", str(table), "--cache", str(cache), "--encoder", "random-tiny"]
    code = "from mfhca_cache.cli import main; main()"
    return subprocess.Popen([sys.executable, "-c", code, *words])


def committed(cache: Path) -> dict[str, bytes]:
    """Receipt → bytes of its shard."""
    found = cache.glob("*/*-[0-9][0-9][0-9][0-9].json")
    return {str(path.relative_to(cache)): path.with_suffix(".h5").read_bytes() for path in found}


def main() -> int:
    """Run calmly once, then with kills, then to the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    moments = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_corpus(folder / "corpus")
        table = folder / "synthetic.csv"
        write_manifest(read_corpus("synthetic", folder / "corpus"), table)
        began = time.monotonic()
        if start(table, folder / "calm").wait():
            return 1
        whole = time.monotonic() - began
        calm = committed(folder / "calm")
        hit = lost = finished = different = 0
        kept: dict[str, bytes] = {}
        for number in range(options.kills):
            if len(kept) == len(calm):
                finished, different = finished + 1, different + differs(folder, calm)
                shutil.rmtree(folder / "wild")
                kept = {}
            process = start(table, folder / "wild")
            time.sleep(moments.uniform(0, whole))
            process.send_signal(signal.SIGKILL)
            hit += process.wait() == -signal.SIGKILL
            now = committed(folder / "wild")
            lost += sum(now.get(path) != content for path, content in kept.items())
            kept = now
            print(f"kill {number + 1}: {len(kept)} of {len(calm)} shards committed", flush=True)
        different += start(table, folder / "wild").wait() != 0 or differs(folder, calm)
    print(
        f"{hit} of {options.kills} kills hit a running process ({whole:.1f} s undisturbed); "
        f"committed shards lost: {lost}; "
        f"finished caches: {finished + 1}, of which not byte-identical to the undisturbed one: {different}"
    )
    return 1 if lost or different else 0


def differs(folder: Path, calm: dict[str, bytes]) -> bool:
    """Whether the finished cache is not the calm one's twin, does not verify, or has stale files beside its shards."""
    if start(folder / "synthetic.csv", folder / "wild").wait():
        return True
    stale = list((folder / "wild").rglob("*.tmp"))
    return committed(folder / "wild") != calm or bool(open_cache(folder / "wild").verify()) or bool(stale)


if __name__ == "__main__":
    sys.exit(main())
