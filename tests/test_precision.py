"""`--precision`: what is lossier is asked for by name, is a feature of its own, and says by how much it differs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mfhca_cache.errors import EncoderError, MfhcaError
from mfhca_cache.extraction.encoder import load_encoder
from mfhca_cache.extraction.estimate import estimate
from mfhca_cache.extraction.pipeline import extract
from mfhca_cache.extraction.runtimes import lowered, relative_error
from mfhca_cache.manifest import Manifest, write_manifest
from mfhca_cache.spec import EncoderSpec, ExtractSpec
from mfhca_cache.storage.cache import open_cache
from mfhca_cache.storage.command import extract_command
from mfhca_cache.storage.descriptions import read_feature, read_plan

from .test_cli import run
from .test_encoder import checkpoint, clips
from .test_runtimes import WIDE, needs_cuda

TINY_BF16 = ExtractSpec(encoder=EncoderSpec("random-tiny", precision="bf16"), spectrogram=None)


def test_a_precision_is_part_of_the_features_name_and_of_nothing_else_in_float32() -> None:
    assert EncoderSpec("a/b", layers=(1, 2), pool="mean", precision="bf16").feature == "b.1-2.mean.bf16"
    assert EncoderSpec("a/b").feature == "b"
    with pytest.raises(MfhcaError, match="precision: got 'int8'"):
        EncoderSpec("a/b", precision="int8")  # type: ignore[arg-type]
    with pytest.raises(MfhcaError, match="text encoder computes in fp32"):
        ExtractSpec(text_encoder=EncoderSpec("a/b", precision="bf16"))


@pytest.mark.parametrize("runtime", ["torch", "onednn"])
def test_bf16_is_near_float32_and_not_it(runtime: str, tmp_path: Path) -> None:
    checkpoint(tmp_path / "enc", **WIDE)
    exact = load_encoder(EncoderSpec(str(tmp_path / "enc"))).encode(clips())
    encoder = load_encoder(EncoderSpec(str(tmp_path / "enc"), precision="bf16"))
    encoder.use(encoder.make(runtime))
    found = encoder.encode(clips())
    assert found.dtype == torch.float32
    assert 1e-4 < relative_error(found, exact) < 0.05


def test_lowered_products_leave_norms_and_the_model_in_float32(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "enc")
    made = lowered(model, "bf16")
    assert made.encoder.layers[0].feed_forward.output_dense.weight.dtype == torch.bfloat16
    assert made.encoder.layers[0].layer_norm.weight.dtype == torch.float32
    assert {value.dtype for value in model.parameters()} == {torch.float32}


def test_the_error_is_measured_on_ones_own_clips_printed_and_recorded(small_manifest: Manifest, tmp_path: Path) -> None:
    told = estimate(small_manifest, tmp_path / "c", TINY_BF16, device="cpu").notes
    report = extract(small_manifest, tmp_path / "c", TINY_BF16, device="cpu")
    (note,) = report.notes
    info = read_feature(tmp_path / "c", "random-tiny.bf16")
    error = info.engine["relative_error"]
    assert note.startswith("random-tiny.bf16: bf16 differs from fp32 by ") and f"{error:.1e}" in note
    assert "of this corpus's clips" in note and told == report.notes
    assert 1e-4 < error < 0.05 and info.engine["precision"] == "bfloat16"
    # What was stored differs by about that much from what float32 stores, float16's own error included.
    extract(
        small_manifest, tmp_path / "c", ExtractSpec(encoder=EncoderSpec("random-tiny"), spectrogram=None), device="cpu"
    )
    loaded = open_cache(tmp_path / "c").load(["random-tiny", "random-tiny.bf16"])
    stored = relative_error(loaded["random-tiny.bf16"].float(), loaded["random-tiny"].float())
    assert error / 3 < stored < error * 3 + 1e-3


def test_the_fingerprint_tells_precisions_apart_and_keeps_float32s(small_manifest: Manifest, tmp_path: Path) -> None:
    extract(small_manifest, tmp_path / "c", TINY_BF16, "session1", device="cpu")
    extract(small_manifest, tmp_path / "c", ExtractSpec(encoder=EncoderSpec("random-tiny")), "session1", device="cpu")
    low, exact = (read_feature(tmp_path / "c", name) for name in ("random-tiny.bf16", "random-tiny"))
    assert "precision" not in exact.settings
    assert {**exact.settings, "precision": "bf16"} == low.settings
    assert low.fingerprint != exact.fingerprint
    command = extract_command(tmp_path / "c", read_plan(tmp_path / "c"), low, "session2")
    assert "--precision bf16" in command and "--encoder random-tiny" in command
    assert "--precision" not in extract_command(tmp_path / "c", read_plan(tmp_path / "c"), exact, "session2")


def test_the_command_takes_a_precision(small_manifest: Manifest, tmp_path: Path) -> None:
    write_manifest(small_manifest, tmp_path / "m.csv")
    words = ("--manifest", tmp_path / "m.csv", "--cache", tmp_path / "c", "--encoder", "random-tiny")
    words = (*words, "--precision", "bf16", "--device", "cpu")
    assert "bf16 differs from fp32 by" in run("plan", *words).output
    assert "bf16 differs from fp32 by" in run("extract", *words, "--layers", "1,2", "--split", "session1").output
    cache = open_cache(tmp_path / "c")
    (info,) = (info for name, info in cache.features.items() if name != "spectrogram")
    assert info.name == "random-tiny.1-2.bf16"
    assert "--layers 1,2" in extract_command(tmp_path / "c", cache.plan, info, None)


def test_fp16_needs_a_gpu(small_manifest: Manifest, tmp_path: Path) -> None:
    spec = ExtractSpec(encoder=EncoderSpec("random-tiny", precision="fp16"))
    with pytest.raises(EncoderError, match="fp16 needs a GPU"):
        extract(small_manifest, tmp_path / "c", spec, device="cpu")
    assert not (tmp_path / "c").exists()


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("runtime", ["torch", "cuda-graph"])
def test_lower_precisions_on_a_gpu(precision: str, runtime: str, tmp_path: Path) -> None:
    checkpoint(tmp_path / "enc", **WIDE)
    spec = EncoderSpec(str(tmp_path / "enc"), precision=precision)  # type: ignore[arg-type]
    exact = load_encoder(EncoderSpec(str(tmp_path / "enc"))).encode(clips())
    encoder = load_encoder(spec, "cuda")
    encoder.use(encoder.make(runtime))
    assert 1e-5 < relative_error(encoder.encode(clips()), exact) < (5e-3 if precision == "fp16" else 0.05)
