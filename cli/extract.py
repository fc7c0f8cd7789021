"""`mfhca extract`: a manifest → spectrograms and a frozen encoder's features in a cache."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from mfhca_cache.distributed.extract import extract_on_ray
from mfhca_cache.extraction.pipeline import extract as extract_corpus
from mfhca_cache.extraction.report import ExtractReport
from mfhca_cache.manifest import Manifest, read_manifest
from mfhca_cache.spec import (
    PRECISIONS,
    ClipSpec,
    EncoderSpec,
    ExtractSpec,
    LogMelSpec,
    MFCCSpec,
    SpectrogramSpec,
    parse_layers,
    settings,
)
from mfhca_cache.storage.cache import open_cache

from .engine import check_engine, engine_options
from .show import Screen, counted, duration, only_one, quiet_and_json, rejections, size

#: More than this share of the rows rejected is no longer bad luck.
REJECTED_SHARE = 0.01
_FEATURE = re.compile(r"(log-mel|mfcc)(?:-([0-9]{1,3}))?|(spectrogram)")


def _part(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """``2/8`` → (2, 8), or a usage error."""
    if value is None:
        return None
    k, slash, n = value.partition("/")
    if not (slash and all(word.isascii() and word.isdigit() for word in (k, n)) and 1 <= int(k) <= int(n)):
        raise click.BadParameter(f"got {value!r}; expected K/N with 1 ≤ K ≤ N, such as 2/8")
    return int(k), int(n)


@click.command()
@click.option("--manifest", "csv", type=click.Path(path_type=Path), help="Utterance table.  [the one in manifests/]")
@click.option("--root", type=click.Path(path_type=Path), help="Corpus folder, if it has moved since the manifest.")
@click.option("--cache", type=click.Path(path_type=Path), help="The cache's own folder.  [cache/CORPUS]")
@click.option(
    "--encoder",
    default="facebook/hubert-base-ls960",
    show_default=True,
    metavar="NAME|DIR|random-tiny|none",
    help="Hub name or local folder of a speech encoder; random-tiny for trying things; none for no encoder.",
)
@click.option("--revision", help="Commit, tag or branch of the encoder on the hub.")
@click.option(
    "--layers",
    default="last",
    show_default=True,
    metavar="last|all|6,9,12",
    help="Hidden layers of the encoder; 0 is what its first block sees. Several make an axis of their own.",
)
@click.option("--pool", type=click.Choice(["mean"]), help="Keep one vector a clip: the mean over its frames.")
@click.option(
    "--features",
    default="spectrogram",
    show_default=True,
    metavar="NAME+NAME|none",
    help="Acoustic features: spectrogram, log-mel (128 bands; log-mel-26 has 26), mfcc (40; mfcc-13 has 13), or none.",
)
@click.option(
    "--text-encoder", metavar="NAME|DIR", help="A text encoder, such as BERT, for the manifest's transcripts."
)
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True, help="Where to compute."
)
@click.option("--split", metavar="SESSION|all", help="One session, or all.  [all that is not there yet]")
@click.option(
    "--shard",
    callback=_part,
    metavar="K/N",
    help="Only part K of N of the work, for the jobs of an array: 2/8. All parts together are everything.",
)
@click.option(
    "--rows",
    type=click.Choice(["four-class", "all"]),
    default="four-class",
    show_default=True,
    help="Utterances of the four classes, or every one.",
)
@click.option(
    "--pad",
    type=click.Choice(["audio", "features"]),
    default="audio",
    show_default=True,
    help="Whether the last clip's padding is signal to the encoder (the paper) or its features are padded.",
)
@click.option("--pre-emphasis", type=float, default=0.0, show_default=True, help="Of the spectrogram; 0 is off.")
@click.option("--dtype", type=click.Choice(["float16", "float32"]), default="float16", show_default=True)
@click.option(
    "--precision",
    type=click.Choice(list(PRECISIONS)),
    default="fp32",
    show_default=True,
    help="Of the speech encoder's products. bf16 and fp16 (GPU only) are faster and make a feature of their own; their "
    "error against fp32 is measured on the first clips and printed.",
)
@click.option(
    "--runtime",
    type=click.Choice(["auto", "torch", "onednn", "openvino", "cuda-graph"]),
    default="auto",
    show_default=True,
    help="What runs the encoder: the fastest that gives PyTorch's numbers, or one by name. Kept to a feature's end.",
)
@click.option("--batch", type=click.IntRange(1), help="Clips an encoder call.  [found by a short trial]")
@click.option("--jobs", type=click.IntRange(1), help="Processes that share the work.  [one a GPU; 1 on a CPU]")
@engine_options
@quiet_and_json
def extract(
    csv: Path | None,
    root: Path | None,
    cache: Path | None,
    encoder: str,
    revision: str | None,
    layers: str,
    pool: str | None,
    features: str,
    text_encoder: str | None,
    device: str,
    split: str | None,
    shard: tuple[int, int] | None,
    rows: str,
    pad: str,
    pre_emphasis: float,
    dtype: str,
    batch: int | None,
    precision: str,
    runtime: str,
    jobs: int | None,
    engine: str,
    address: str | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Extract what a corpus's cache does not hold yet.

    Cuts 3-second clips, computes their spectrograms and the encoder's final hidden layer, and writes shards that are
    complete or absent: stop it any way you like, and the same command goes on. Each feature is a folder of the one
    cache; adding another touches none that is there. Exit status 1 if more than 1 % of the utterances were rejected.

    \b
    Example:
        mfhca extract --split session1
        mfhca extract --encoder random-tiny --cache cache/trial
        mfhca extract --encoder microsoft/wavlm-large --layers all --pool mean
        mfhca extract --encoder none --features log-mel+mfcc
        mfhca extract --precision bf16
        mfhca extract --shard $SLURM_ARRAY_TASK_ID/8    # sbatch --array=1-8
        mfhca extract --engine ray --address head-node:6379
    """
    check_engine(engine, address, shard is not None, jobs is not None)
    found, spec = asked(
        csv, root, encoder, revision, layers, pool, features, text_encoder, rows, pad, pre_emphasis, dtype, precision
    )
    folder = cache or Path("cache") / found.corpus
    with Screen(quiet, as_json) as screen:
        common: dict[str, Any] = {"device": device, "batch": batch, "runtime": runtime, "progress": screen.progress}
        if engine == "ray":
            report = extract_on_ray(found, folder, spec, split, address=address, **common)
        else:
            report = extract_corpus(found, folder, spec, split, shard=shard, jobs=jobs, **common)
    _show(screen, report)
    screen.json({**settings(report), "ok": report.ok})
    if len(report.rejected) > REJECTED_SHARE * report.utterances:
        share = len(report.rejected) / report.utterances
        raise click.ClickException(
            f"{share:.1%} of the utterances were rejected, more than {REJECTED_SHARE:.0%}; "
            "everything else is extracted. Mend the files, make the manifest again, or leave them out"
        )


def asked(
    csv: Path | None,
    root: Path | None,
    encoder: str,
    revision: str | None,
    layers: str,
    pool: str | None,
    features: str,
    text_encoder: str | None,
    rows: str,
    pad: str,
    pre_emphasis: float,
    dtype: str,
    precision: str,
) -> tuple[Manifest, ExtractSpec]:
    """The manifest and the settings that the options of `extract` and `plan` mean."""
    path = csv or only_one(
        Path("manifests"), "*.csv", "manifest", "--manifest CSV", "`mfhca manifest CORPUS ROOT` writes one"
    )
    found = read_manifest(path)
    if root is not None:
        found = found.with_root(root)
    spec = ExtractSpec(
        encoder=None if encoder == "none" else EncoderSpec(encoder, revision, parse_layers(layers), pool, precision),  # type: ignore[arg-type]
        text_encoder=EncoderSpec(text_encoder) if text_encoder else None,
        clip=ClipSpec(pad=pad),  # type: ignore[arg-type]
        **_acoustic(features, pre_emphasis),
        rows=rows,  # type: ignore[arg-type]
        dtype=dtype,  # type: ignore[arg-type]
    )
    return found, spec


def _acoustic(features: str, pre_emphasis: float) -> dict[str, Any]:
    """``spectrogram+log-mel-26`` and the like → those fields of an `ExtractSpec`."""
    found: dict[str, Any] = {"spectrogram": None}
    for name in [] if features == "none" else features.replace(",", "+").split("+"):
        match = _FEATURE.fullmatch(name.strip())
        if match is None:
            raise click.UsageError(
                f"--features {features}: {name!r} is none of spectrogram, log-mel[-N], mfcc[-N], none"
            )
        kind, count = match[1] or match[3], match[2]
        if kind == "spectrogram":
            found["spectrogram"] = SpectrogramSpec(pre_emphasis=pre_emphasis)
        elif kind == "log-mel":
            found["log_mel"] = LogMelSpec(mels=int(count)) if count else LogMelSpec()
        else:
            found["mfcc"] = MFCCSpec(coefficients=int(count)) if count else MFCCSpec()
    return found


def _covered(names: tuple[str, ...]) -> str:
    """``6 shards: spectrogram/session1-0001 … hubert-base-ls960/session5-0001``."""
    if not names:
        return "nothing: there are fewer shards than parts"
    return f"{counted(len(names), 'shard')}: {' … '.join(dict.fromkeys([names[0], names[-1]]))}"


def _show(screen: Screen, report: ExtractReport) -> None:
    for note in report.notes:
        screen.out.print(f"Note: {note}", style="yellow", markup=False, soft_wrap=True)
    cache = open_cache(report.cache)
    features = cache.features
    for name in report.features:
        if name in features and features[name].random_weights:
            note = f"Note: {name} has random weights; its features mean nothing"
            screen.out.print(note, style="yellow", markup=False, soft_wrap=True)
    if report.new_shards:
        done = [f"{report.new_clips:,} clips"] if report.new_clips or not report.new_texts else []
        done += [f"{report.new_texts:,} transcripts"] if report.new_texts else []
        rate = f" ({report.new_clips / report.seconds:.1f} clips/s)" if report.new_clips else ""
        screen.out.print(
            f"Extracted {' and '.join(done)} in {duration(report.seconds)}{rate}, "
            f"{counted(report.new_shards, 'shard')}, {size(report.bytes_written)}"
        )
    else:
        screen.out.print("Nothing to do: every shard is there already.")
    if report.shard:
        k, n = report.shard
        screen.say(f"Part {k} of {n} covers {_covered(report.covered)}")
    rejections(screen, report.rejected, f"of {report.utterances:,} utterances:")
    screen.out.print(
        f"{report.cache}: {', '.join(report.features)} of {', '.join(report.splits)}: "
        f"{report.ok:,} utterances + {len(report.rejected):,} rejected = {report.utterances:,}; {report.clips:,} clips",
        markup=False,
        soft_wrap=True,
    )
    left = {split for name in report.features if name in features for split in cache.missing(name)}
    following = f"mfhca extract (still missing: {', '.join(sorted(left))})" if left else "mfhca train --fold all"
    screen.out.print(f"Next: {following}", markup=False, soft_wrap=True)
