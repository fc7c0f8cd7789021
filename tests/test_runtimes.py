"""What runs an encoder: the faster ways give plain PyTorch's numbers, and what was chosen is kept."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mfhca_cache.errors import CacheError, CacheMismatchError, EncoderError
from mfhca_cache.extraction import engine as engine_module
from mfhca_cache.extraction import runtimes
from mfhca_cache.extraction.cuda_graph import GraphRuntime, _Captured
from mfhca_cache.extraction.encoder import Encoder, load_encoder
from mfhca_cache.extraction.engine import AskedEngine, choose_engine
from mfhca_cache.extraction.estimate import estimate
from mfhca_cache.extraction.features import new_engine
from mfhca_cache.extraction.pipeline import extract
from mfhca_cache.extraction.runtimes import TorchRuntime, UnsuitableError, is_installed, relative_error, twin
from mfhca_cache.manifest import Manifest, write_manifest
from mfhca_cache.spec import EncoderSpec, ExtractSpec
from mfhca_cache.storage.cache import open_cache
from mfhca_cache.storage.descriptions import read_feature, write_feature

from .conftest import small_corpus
from .test_cli import run
from .test_encoder import checkpoint, clips
from .test_families import FAMILIES, save, speechlike, whisper

needs_openvino = pytest.mark.skipif(not is_installed("openvino"), reason="needs OpenVINO: install the extra [openvino]")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
#: Wide enough for packed layers.
WIDE = {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128, "conv_dim": (64,) * 7}


@pytest.fixture
def no_encoder_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes, "SMALL_PARAMETERS", 0)


def wide(folder: Path) -> Encoder:
    checkpoint(folder, **WIDE)
    return load_encoder(EncoderSpec(str(folder)))


@pytest.mark.parametrize("name", ["onednn", pytest.param("openvino", marks=needs_openvino)])
def test_a_faster_runtime_gives_pytorchs_numbers(name: str, tmp_path: Path) -> None:
    encoder, x = wide(tmp_path / "enc"), clips(3)
    expected = encoder.encode(x, "all")
    encoder.use(encoder.make(name))
    assert relative_error(encoder.encode(x, "all"), expected) < 1e-5
    assert relative_error(encoder.encode(x), expected[:, 2]) < 1e-5
    # Other numbers and other lengths of clips.
    assert relative_error(encoder.encode(x[:1], "all"), expected[:1]) < 1e-5
    short = encoder.encode(x[:, :20_000], "all")
    encoder.use(encoder.make("torch"))
    assert relative_error(short, encoder.encode(x[:, :20_000], "all")) < 1e-5


@pytest.mark.parametrize("family", [*FAMILIES, "whisper"])
def test_a_runtime_is_right_or_says_that_it_is_not_suited(family: str, tmp_path: Path) -> None:
    if family == "whisper":
        whisper(tmp_path / "e", 80)
        x = speechlike(2, 48_000)
    else:
        save(tmp_path / "e", FAMILIES[family])
        x = speechlike(2, 9_000)
    encoder = load_encoder(EncoderSpec(str(tmp_path / "e")))
    expected = encoder.encode(x, "all")
    try:
        encoder.use(encoder.make("onednn"))
        found = encoder.encode(x, "all")
    except UnsuitableError:
        return
    assert relative_error(found, expected) < 1e-5


def test_packed_layers_leave_the_model_alone(tmp_path: Path) -> None:
    encoder, x = wide(tmp_path / "enc"), clips(1)
    before = encoder.encode(x)
    runtime = encoder.make("onednn")
    assert torch.equal(encoder.encode(x), before)
    types = {type(module).__name__ for module in runtime.model.modules()}  # type: ignore[attr-defined]
    assert {"PackedLinear", "PackedConv1d", "Identity"} <= types


def test_a_twin_shares_the_weights_and_computes_a_normed_weight_once(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "enc")
    made = twin(model)
    assert made.encoder.layers[0].attention.k_proj.weight is model.encoder.layers[0].attention.k_proj.weight
    assert type(made.encoder.pos_conv_embed.conv) is nn.Conv1d
    x = torch.from_numpy(clips(1))
    with torch.inference_mode():
        assert torch.equal(made(x).last_hidden_state, model(x).last_hidden_state)


class Wrong:
    """A runtime that is off by a little."""

    name, note = "openvino", ""

    def __init__(self, of: Encoder, factor: float) -> None:
        self._plain, self._factor = of.make("torch"), factor

    def hidden(self, values: torch.Tensor, layers: Sequence[int]) -> torch.Tensor:
        return self._plain.hidden(values, layers) * self._factor

    def forget(self) -> None:
        pass


def choose(encoder: Encoder, asked: AskedEngine) -> dict[str, object]:
    return choose_engine(encoder, (2,), new_engine("cpu", None), asked, lambda: clips(4, 8_000))


def test_the_choice_is_checked_timed_and_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_encoder_is_small: None
) -> None:
    encoder = wide(tmp_path / "enc")
    make, seconds = encoder.make, {"openvino": 1.0, "onednn": 3.0, "torch": 2.0}
    monkeypatch.setattr(engine_module, "available", lambda device: ("openvino", "onednn", "torch"))
    monkeypatch.setattr(engine_module, "version", lambda name: "1.0")
    monkeypatch.setattr(engine_module._Trial, "_seconds", lambda self, runtime, batch: seconds[runtime.name])

    def factor(value: float) -> None:
        monkeypatch.setattr(
            encoder,
            "make",
            lambda name, *args, **words: Wrong(encoder, value) if name == "openvino" else make(name, *args, **words),
        )

    monkeypatch.setattr(
        Wrong, "__init__", lambda self, of, value: vars(self).update(_plain=make("torch"), _factor=value)
    )
    factor(1 + 3e-6)
    found = choose(encoder, AskedEngine(batch=5))
    assert (found["name"], found["version"], found["batch"]) == ("openvino", "1.0", 5)
    assert found["relative_error"] == pytest.approx(3e-6, rel=0.2)
    assert "refused" not in found
    # Another one is not exact: the next fastest is taken, and it is said why.
    factor(1.001)
    found = choose(encoder, AskedEngine(batch=5))
    assert found["name"] == "torch" and "relative_error" not in found
    assert "differs from plain PyTorch in float32 by 1.0e-03" in found["refused"]["openvino"]  # type: ignore[index]
    seconds["onednn"] = 2.05  # preferred, and hardly slower
    assert choose(encoder, AskedEngine(batch=5))["name"] == "onednn"
    with pytest.raises(EncoderError, match=r"openvino cannot compute.*differs.*--runtime auto"):
        choose(encoder, AskedEngine("openvino"))


@pytest.mark.parametrize(
    ("error", "why"),
    [(RuntimeError("no such primitive\nstack"), "no such primitive"), (MemoryError(), "memory ended")],
)
def test_a_library_that_fails_is_passed_over_and_recorded(
    error: Exception, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_encoder_is_small: None
) -> None:
    encoder = wide(tmp_path / "enc")

    def fail(*_: object) -> torch.Tensor:
        raise error

    monkeypatch.setattr(engine_module, "available", lambda device: ("onednn", "torch"))
    monkeypatch.setattr("mfhca_cache.extraction.onednn.OneDNNRuntime.hidden", fail)
    found = choose(encoder, AskedEngine(batch=2))
    assert (found["name"], found["refused"]) == ("torch", {"onednn": why})
    with pytest.raises(EncoderError, match=f"onednn cannot compute.*{why}"):
        choose(encoder, AskedEngine("onednn", 2))


def test_a_small_encoder_is_computed_by_plain_pytorch_without_a_trial(tmp_path: Path) -> None:
    encoder = wide(tmp_path / "enc")

    def none() -> np.ndarray:
        raise AssertionError("no clip is needed")

    found = choose_engine(encoder, (2,), new_engine("cpu", None), AskedEngine(), none)
    assert found == new_engine("cpu", None)
    assert found["name"] == "torch" and found["batch"] == 8


def of(folder: Path, **changes: object) -> ExtractSpec:
    spec = ExtractSpec(encoder=EncoderSpec(str(folder)), spectrogram=None)
    return dataclasses.replace(spec, **changes)  # type: ignore[arg-type]


def test_a_few_clips_are_computed_without_a_trial(tmp_path: Path, no_encoder_is_small: None) -> None:
    def none() -> np.ndarray:
        pytest.fail("a trial was made")

    encoder = wide(tmp_path / "enc")
    found = choose_engine(encoder, (2,), new_engine("cpu", None), AskedEngine(few=True), none)
    assert (found["name"], found["batch"], encoder.runtime.name) == ("torch", 8, "torch")
    # A precision's error is measured all the same.
    lowered = load_encoder(EncoderSpec(str(tmp_path / "enc"), precision="bf16"))
    asked = AskedEngine(few=True)
    found = choose_engine(lowered, (2,), new_engine("cpu", None, "bf16"), asked, lambda: clips(4, 8_000))
    assert found["name"] == "torch" and found["relative_error"] > 1e-4 and found["batch"] == 8


def test_a_feature_goes_on_with_the_runtime_it_was_begun_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint(tmp_path / "enc", **WIDE)
    manifest, spec = small_corpus(tmp_path / "w", sessions=2), of(tmp_path / "enc")
    extract(manifest, tmp_path / "c", spec, "session1", device="cpu", runtime="onednn", batch=3)
    engine = read_feature(tmp_path / "c", "enc").engine
    assert (engine["name"], engine["version"], engine["batch"]) == ("onednn", torch.__version__, 3)
    assert 0 < engine["relative_error"] < 1e-5
    with pytest.raises(CacheMismatchError, match=r"begun with the runtime onednn.*got torch"):
        extract(manifest, tmp_path / "c", spec, device="cpu", runtime="torch")
    used = []
    monkeypatch.setattr(Encoder, "use", lambda self, runtime: used.append(runtime.name))
    assert estimate(manifest, tmp_path / "c", spec, device="cpu").features[0].count_left == 10
    assert set(used) == {"onednn"}
    monkeypatch.undo()
    extract(manifest, tmp_path / "c", spec, device="cpu")
    assert read_feature(tmp_path / "c", "enc").engine == engine
    assert not open_cache(tmp_path / "c").verify()


def test_a_runtime_that_is_gone_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint(tmp_path / "enc", **WIDE)
    manifest, spec = small_corpus(tmp_path / "w", sessions=2), of(tmp_path / "enc")
    extract(manifest, tmp_path / "c", spec, "session1", device="cpu")
    info = read_feature(tmp_path / "c", "enc")
    write_feature(tmp_path / "c", dataclasses.replace(info, engine={**info.engine, "name": "openvino", "version": "9"}))
    monkeypatch.setattr(runtimes, "is_installed", lambda name: name != "openvino")
    before = (tmp_path / "c" / "enc" / "feature.json").read_bytes()
    with pytest.raises(CacheMismatchError, match=r"runtime openvino 9.*\[openvino\].*another cache"):
        extract(manifest, tmp_path / "c", spec, device="cpu")
    with pytest.raises(EncoderError, match=r"not installed.*pip install"):
        extract(manifest, tmp_path / "other", spec, device="cpu", runtime="openvino")
    assert (tmp_path / "c" / "enc" / "feature.json").read_bytes() == before
    assert not (tmp_path / "other").exists()


def test_a_feature_from_before_there_were_runtimes_goes_on(tmp_path: Path) -> None:
    checkpoint(tmp_path / "enc", **WIDE)
    manifest, spec = small_corpus(tmp_path / "w", sessions=2), of(tmp_path / "enc")
    extract(manifest, tmp_path / "c", spec, "session1", device="cpu")
    info = read_feature(tmp_path / "c", "enc")
    old = {"name": "torch", "device": "cpu", "precision": "float32", "threads": 2, "batch": 8}
    write_feature(tmp_path / "c", dataclasses.replace(info, engine=old))
    assert extract(manifest, tmp_path / "c", spec, device="cpu").new_clips == 10
    assert read_feature(tmp_path / "c", "enc").engine == old


def test_an_engine_of_other_types_is_damage(small_manifest: Manifest, tmp_path: Path) -> None:
    extract(small_manifest, tmp_path / "c", of(Path("random-tiny")), "session1", device="cpu")
    info = read_feature(tmp_path / "c", "random-tiny")
    write_feature(tmp_path / "c", dataclasses.replace(info, engine={**info.engine, "name": ["torch"]}))
    with pytest.raises(CacheError, match="damaged"):
        read_feature(tmp_path / "c", "random-tiny")


def test_the_runtime_is_an_option_of_the_command(small_manifest: Manifest, tmp_path: Path) -> None:
    write_manifest(small_manifest, tmp_path / "m.csv")
    checkpoint(tmp_path / "enc", **WIDE)
    words = ("--manifest", tmp_path / "m.csv", "--cache", tmp_path / "c", "--encoder", tmp_path / "enc")
    words = (*words, "--features", "none", "--device", "cpu")
    run("extract", *words, "--runtime", "torch", "--split", "session1")
    told = run("extract", *words, "--runtime", "onednn", expect=1).output
    assert "begun with the runtime torch" in told
    engine = json.loads((tmp_path / "c" / "enc" / "feature.json").read_text())["engine"]
    assert engine["name"] == "torch"


def test_a_runtime_for_another_device_is_refused(small_manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match=r"cuda-graph runs on cuda alone; use --device cuda"):
        extract(small_manifest, tmp_path / "c", of(Path("random-tiny")), device="cpu", runtime="cuda-graph")


def test_many_batches_come_in_order(tmp_path: Path) -> None:
    encoder = wide(tmp_path / "enc")
    batches = [clips(n, 8_000, seed=n) for n in (3, 1, 2)]
    found = list(encoder.encode_many(iter(batches), dtype=torch.float16))
    assert all(item.dtype == torch.float16 for item in found)
    for item, batch in zip(found, batches, strict=True):
        assert torch.equal(item, encoder.encode(batch).half())


class Replay:
    """What a captured graph does, without a GPU: the eager call, written in place."""

    def __init__(self, eager: TorchRuntime, values: torch.Tensor, layers: Sequence[int]) -> None:
        self.values, self.layers, self.eager = values.clone(), layers, eager
        self.hidden, self.replays = eager.hidden(values, layers).clone(), 0

    def replay(self) -> None:
        self.replays += 1
        self.hidden.copy_(self.eager.hidden(self.values, self.layers))


def test_the_largest_batch_is_captured_and_smaller_ones_run_eagerly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = wide(tmp_path / "enc")
    expected = [encoder.encode(clips(n, 8_000, seed=n)) for n in (2, 4, 3)]
    captured: list[Replay] = []

    def capture(self: GraphRuntime, values: torch.Tensor, layers: Sequence[int]) -> _Captured:
        captured.append(Replay(self._eager, values, layers))
        return _Captured(captured[-1], captured[-1].values, captured[-1].hidden)

    monkeypatch.setattr(GraphRuntime, "_capture", capture)
    encoder.use(GraphRuntime(TorchRuntime(encoder._model)))
    for _ in range(2):
        for n, wanted in zip((2, 4, 3), expected, strict=True):
            torch.testing.assert_close(encoder.encode(clips(n, 8_000, seed=n)), wanted, rtol=1e-5, atol=1e-6)
    assert [(len(graph.values), graph.replays) for graph in captured] == [(2, 1), (4, 2)]
    # The result is the caller's own: the next replay does not change it.
    first = encoder.encode(clips(4, 8_000, seed=4))
    encoder.encode(clips(4, 8_000, seed=9))
    torch.testing.assert_close(first, expected[1], rtol=1e-5, atol=1e-6)
    encoder.runtime.forget()
    encoder.encode(clips(1, 8_000))
    assert len(captured) == 3 and len(captured[2].values) == 1


@pytest.mark.cuda
@needs_cuda
def test_a_captured_graph_gives_what_eager_calls_give(tmp_path: Path) -> None:
    checkpoint(tmp_path / "enc", **WIDE)
    encoder, x = load_encoder(EncoderSpec(str(tmp_path / "enc")), "cuda"), clips(4)
    expected = encoder.encode(x, "all")
    graph = encoder.make("cuda-graph")
    encoder.use(graph)
    for _ in range(2):
        assert relative_error(encoder.encode(x, "all"), expected) < 1e-5
    assert relative_error(encoder.encode(x[:3], "all"), expected[:3]) < 1e-5  # another shape: eagerly
    other = clips(4, seed=7)
    assert not graph.note and relative_error(encoder.encode(other, "all"), expected) > 0.01


@pytest.mark.cuda
@needs_cuda
def test_overlapped_copies_bring_what_single_calls_bring(tmp_path: Path) -> None:
    checkpoint(tmp_path / "enc", **WIDE)
    encoder = load_encoder(EncoderSpec(str(tmp_path / "enc")), "cuda")
    batches = [clips(n, seed=n) for n in (4, 4, 4, 2)]
    expected = [encoder.encode(batch) for batch in batches]
    for name in ("torch", "cuda-graph"):
        encoder.use(encoder.make(name))
        for _ in range(2):
            for found, wanted in zip(encoder.encode_many(batches), expected, strict=True):
                assert relative_error(found, wanted) < 1e-5


@pytest.mark.cuda
@needs_cuda
def test_an_engine_is_chosen_on_a_gpu(tmp_path: Path, no_encoder_is_small: None) -> None:
    checkpoint(tmp_path / "enc", **WIDE)
    encoder = load_encoder(EncoderSpec(str(tmp_path / "enc")), "cuda")
    found = choose_engine(encoder, (2,), new_engine("cuda", None), AskedEngine(), lambda: clips(8))
    assert found["name"] in ("cuda-graph", "torch") and found["batch"] >= 8
    assert (
        relative_error(encoder.encode(clips(8)), load_encoder(EncoderSpec(str(tmp_path / "enc"))).encode(clips(8)))
        < 1e-5
    )


def test_a_runtime_that_fails_only_when_it_computes_is_an_error_too(tmp_path: Path) -> None:
    encoder = wide(tmp_path / "enc")

    class Elsewhere(Wrong):
        def hidden(self, values: torch.Tensor, layers: Sequence[int]) -> torch.Tensor:
            raise UnsuitableError("OpenVINO cannot convert this encoder (no such operation)")

    encoder.use(Elsewhere(encoder, 1.0))
    with pytest.raises(EncoderError, match=r"openvino cannot compute.*no such operation.*another cache"):
        encoder.encode(clips(1))


@needs_openvino
def test_signals_are_survived_behind_openvino(tmp_path: Path) -> None:
    """Where Python has given signals a stack of their own (faulthandler, as in pytest and in Ray's workers)."""
    checkpoint(tmp_path / "e", **WIDE)
    code = f"""
import gc, signal
import numpy as np
from mfhca_cache.extraction.encoder import load_encoder
from mfhca_cache.spec import EncoderSpec
kept = []
for _ in range(3):
    encoder = load_encoder(EncoderSpec({str(tmp_path / "e")!r}))
    encoder.use(encoder.make("openvino"))
    encoder.encode(np.zeros((1, 16000), dtype=np.float32) + 0.1)
    kept.append(encoder)
del encoder
while kept:
    del kept[0]
    gc.collect()
found = []
signal.signal(signal.SIGUSR1, lambda *_: found.append(1))
signal.raise_signal(signal.SIGUSR1)
print("survived", len(found))
"""
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", code], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "survived 1"), done.stderr
