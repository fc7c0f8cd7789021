"""Write a HuBERT-base (or wav2vec 2.0 base) checkpoint of random weights: the real geometry and cost, for timings only.

Its features mean nothing. config.json says so (`random_weights`), and every cache and result made with it repeats it.

    python benchmarks/make_random_hubert.py random-hubert-base
    mfhca extract --encoder random-hubert-base
    python benchmarks/make_random_hubert.py random-wav2vec2-base --family wav2vec2
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import HubertConfig, HubertModel, Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

FAMILIES = {"hubert": (HubertConfig, HubertModel), "wav2vec2": (Wav2Vec2Config, Wav2Vec2Model)}


def write_random_hubert(folder: Path, seed: int = 0, family: str = "hubert", **settings: object) -> None:
    """Save a seeded encoder as `save_pretrained` does; `settings` override the base model's configuration."""
    make_config, make_model = FAMILIES[family]
    config = make_config(**settings)
    config.random_weights = True
    torch.manual_seed(seed)
    make_model(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)


def main() -> None:
    """Parse the folder and the seed, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--family", choices=list(FAMILIES), default="hubert")
    options = parser.parse_args()
    write_random_hubert(options.folder, options.seed, options.family)
    print(f"{options.folder}: {options.family} base geometry, random weights, seed {options.seed}")


if __name__ == "__main__":
    main()
