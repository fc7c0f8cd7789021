"""Write a HuBERT-base checkpoint of random weights: the real geometry and cost, for timings only.

Its features mean nothing. config.json says so (`random_weights`), and every cache and result made with it repeats it.

    python benchmarks/make_random_hubert.py random-hubert-base
    mfhca extract --encoder random-hubert-base
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor


def write_random_hubert(folder: Path, seed: int = 0, **settings: object) -> None:
    """Save a seeded HuBERT as `save_pretrained` does; `settings` override HuBERT-base's configuration."""
    config = HubertConfig(**settings)
    config.random_weights = True
    torch.manual_seed(seed)
    HubertModel(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)


def main() -> None:
    """Parse the folder and the seed, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write_random_hubert(options.folder, options.seed)
    print(f"{options.folder}: HuBERT-base geometry, random weights, seed {options.seed}")


if __name__ == "__main__":
    main()
