"""Open shards written by this code with an old h5py, in an environment of its own, and compare every array.

Needs a network (or a package mirror) for pip, and a Python that h5py 3.8 has wheels for: 3.11 or older. Exit status 1
if anything differs.

    python benchmarks/old_h5py.py
    python benchmarks/old_h5py.py --h5py 3.9.* --python python3.11
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np

from mfhca_cache.corpora import read_corpus
from mfhca_cache.corpora.synthetic import write_corpus
from mfhca_cache.extraction.pipeline import extract
from mfhca_cache.spec import EncoderSpec, ExtractSpec
from mfhca_cache.storage.cache import open_cache

#: Run by the old Python: the SHA-256, shape and type of every dataset of every shard, and the attributes.
READER = """
import hashlib, json, sys, h5py
found = {"h5py": h5py.version.version, "hdf5": h5py.version.hdf5_version}
for path in sys.argv[1:]:
    with h5py.File(path, "r") as file:
        found[path] = {
            name: [hashlib.sha256(item[...].tobytes()).hexdigest(), list(item.shape), str(item.dtype)]
            for name, item in file.items()
        }
        found[path]["attributes"] = {name: str(value) for name, value in file.attrs.items()}
print(json.dumps(found))
"""


def expected(path: Path) -> dict[str, object]:
    """The same, read by this environment's h5py."""
    with h5py.File(path, "r") as file:
        arrays = {name: np.asarray(item) for name, item in file.items()}
        attributes = {name: str(value) for name, value in file.attrs.items()}
    found: dict[str, object] = {
        name: [hashlib.sha256(array.tobytes()).hexdigest(), list(array.shape), str(array.dtype)]
        for name, array in arrays.items()
    }
    return {**found, "attributes": attributes}


def main() -> int:
    """Extract a small cache in both types, read it with the old h5py, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--h5py", default="3.8.*", help="version to install")
    parser.add_argument("--python", default="python3.11", help="interpreter for its environment")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run([options.python, "-m", "venv", folder / "old"], check=True)
        old = folder / "old" / "bin" / "python"
        words = ["-m", "pip", "install", "--quiet", "--only-binary=:all:", f"h5py=={options.h5py}", "numpy<2"]
        subprocess.run([old, *words], check=True)
        write_corpus(folder / "corpus", utterances_per_speaker=4)
        manifest = read_corpus("synthetic", folder / "corpus")
        for dtype in ("float16", "float32"):
            spec = ExtractSpec(encoder=EncoderSpec("random-tiny"), dtype=dtype)
            extract(manifest, folder / dtype, spec, device="cpu")
            if faults := open_cache(folder / dtype).verify():
                print("\n".join(faults))
                return 1
        shards = sorted(folder.glob("float*/*/*.h5"))
        done = subprocess.run([old, "-c", READER, *shards], check=True, capture_output=True, text=True)
        found = json.loads(done.stdout)
        wrong = [str(path.relative_to(folder)) for path in shards if found[str(path)] != expected(path)]
    print(f"written with h5py {h5py.version.version} (HDF5 {h5py.version.hdf5_version})")
    alike = f"{len(shards) - len(wrong)} of {len(shards)} shards alike"
    print(f"read with h5py {found['h5py']} (HDF5 {found['hdf5']}): {alike}")
    print("\n".join(wrong), end="")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
