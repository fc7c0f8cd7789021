"""AlexNet in MF's place: sizes, weights from a file, and training with it."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from mfhca_cache.errors import TrainingError
from mfhca_cache.models import MFHCASettings, SpectrogramOnly, build_model, count_parameters
from mfhca_cache.models.alexnet import AlexNet, find_weights, load_weights
from mfhca_cache.models.mfhca import as_image
from mfhca_cache.storage.cache import Cache
from mfhca_cache.training.changes import changes_name, parse_changes
from mfhca_cache.training.crossval import cross_validate, run_name
from mfhca_cache.training.job import make_model, model_settings, prepare
from mfhca_cache.training.options import TrainOptions
from mfhca_cache.training.result import load_checkpoint
from mfhca_cache.training.trainer import train_fold

#: Of torchvision's AlexNet: its convolutions, and its classifier's first layer.
CONVOLUTIONS = 2_469_696
SPECTROGRAM = TrainOptions(
    features="spectrogram", preset="frozen", epochs=1, threads=1, changes=(("spectrogram_network", "alexnet"),)
)


def every_gradient(model: nn.Module, **inputs: Tensor) -> dict[str, float]:
    """Parameter → the largest of its gradients after one step of cross entropy."""
    model.train()
    logits = model(**inputs)
    nn.functional.cross_entropy(logits, torch.arange(len(logits)) % logits.shape[1]).backward()
    return {
        name: 0.0 if parameter.grad is None else float(parameter.grad.abs().max())
        for name, parameter in model.named_parameters()
    }


def test_every_stage_has_the_shape_of_torchvisions() -> None:
    torch.manual_seed(0)
    net = AlexNet().eval()
    shapes, x = [], torch.randn(1, 3, 224, 224)
    for layer in net.features:
        x = layer(x)
        shapes.append(tuple(x.shape[1:]))
    pools = [shape for layer, shape in zip(net.features, shapes, strict=True) if isinstance(layer, nn.MaxPool2d)]
    assert pools == [(64, 27, 27), (192, 13, 13), (256, 6, 6)]
    assert shapes[6] == (384, 13, 13) and shapes[8] == (256, 13, 13)
    assert count_parameters(net.features) == CONVOLUTIONS
    assert count_parameters(net) == CONVOLUTIONS + 9216 * 128 + 128
    assert net.features(torch.randn(1, 3, 300, 200)).shape[1:] == (256, 8, 5)
    with torch.no_grad():
        f_spec = net(torch.randn(2, 3, 300, 200))
    assert f_spec.shape == (2, 128) and bool((f_spec >= 0).all())


def test_it_is_the_composition_that_the_baseline_states() -> None:
    torch.manual_seed(0)
    net = AlexNet(width=10).eval()
    image = as_image(torch.randn(2, 90, 80), 3)
    with torch.no_grad():
        pooled = nn.AdaptiveAvgPool2d((6, 6))(net.features(image)).flatten(1)
        expected = torch.relu(pooled @ net.projection.weight.T + net.projection.bias)
        torch.testing.assert_close(net(image), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [(62, 200), (300, 62)])
def test_an_image_that_is_too_small_is_refused(size: tuple[int, int]) -> None:
    assert AlexNet(8)(torch.zeros(1, 3, 63, 63)).shape == (1, 8)
    with pytest.raises(TrainingError, match="T and F at least 63; use longer clips"):
        AlexNet(8)(torch.zeros(1, 3, *size))
    with pytest.raises(TrainingError, match=r"expected \(B, 3, T, F\)|expects \(B, 3, T, F\)"):
        AlexNet(8)(torch.zeros(1, 1, 100, 100))


def test_gradients_reach_every_parameter() -> None:
    torch.manual_seed(0)
    model = SpectrogramOnly(MFHCASettings(spectrogram_network="alexnet", hidden=32, dropout=0.0))
    found = every_gradient(model, spectrogram=torch.randn(8, 80, 70))
    assert not [name for name, largest in found.items() if largest == 0]
    assert count_parameters(model.mf) == CONVOLUTIONS + 9216 * 32 + 32


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_memory_format_and_bfloat16_change_no_result(precision: torch.dtype) -> None:
    torch.manual_seed(0)
    model = SpectrogramOnly(MFHCASettings(spectrogram_network="alexnet", dropout=0.0)).eval()
    spectrogram = torch.randn(2, 100, 80)
    with torch.no_grad():
        plain = model(spectrogram)
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            other = model(spectrogram).float()
    tolerance = 1e-5 if precision == torch.float32 else 0.02
    torch.testing.assert_close(other, plain, rtol=tolerance, atol=tolerance)


# Weights from a file


def torchvisions(seed: int = 7) -> dict[str, Tensor]:
    """Made-up weights under torchvision's names, a piece of its classifier among them."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {f"features.{name}": value.shape for name, value in AlexNet().features.state_dict().items()}
    shapes["classifier.6.bias"] = torch.Size([1000])
    return {name: 0.02 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def write_pth(path: Path, values: Any) -> None:
    torch.save(values, path)


def write_old_pth(path: Path, values: Any) -> None:
    torch.save(values, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("write", [write_pth, write_old_pth, lambda path, x: safetensors.torch.save_file(x, path)])
def test_weights_come_from_files_of_either_kind(write: Callable[[Path, Any], None], tmp_path: Path) -> None:
    values = torchvisions()
    write(tmp_path / "alexnet", values)
    net = AlexNet()
    load_weights(net, find_weights(tmp_path / "alexnet"))
    for name, value in net.features.state_dict().items():
        assert torch.equal(value, values[f"features.{name}"])


def test_a_header_that_looks_like_a_pickle_is_still_safetensors(tmp_path: Path) -> None:
    content = safetensors.torch.save(values := torchvisions())
    length = int.from_bytes(content[:8], "little")
    padded = (0x1_0280).to_bytes(8, "little") + content[8 : 8 + length].ljust(0x1_0280) + content[8 + length :]
    assert padded[:2] == b"\x80\x02"  # as a pickle begins
    (tmp_path / "alexnet").write_bytes(padded)
    load_weights(net := AlexNet(), find_weights(tmp_path / "alexnet"))
    assert torch.equal(net.features[0].weight, values["features.0.weight"])  # type: ignore[arg-type]


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path("was-run").write_text, ("pickled code was run",))


def test_a_file_that_holds_code_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"features.0.weight": Evil()}, "alexnet.pth")
    Path("plain.pth").write_bytes(pickle.dumps(Evil(), protocol=2))
    for name in ("alexnet.pth", "plain.pth"):
        with pytest.raises(TrainingError, match="not readable as weights"):
            load_weights(AlexNet(), find_weights(name))
    assert not Path("was-run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features.3.weight": None}, r"without features\.3\.weight; expected torchvision's AlexNet"),
        ({"features.12.weight": torch.zeros(2)}, r"features\.12\.weight is none of AlexNet's"),
        (
            {"features.0.bias": torch.zeros(63)},
            r"features\.0\.bias is torch\.float32 \(63,\); expected numbers \(64,\)",
        ),
        ({"features.0.bias": torch.zeros(64, dtype=torch.int64)}, r"features\.0\.bias is torch\.int64"),
        ({"features.0.bias": torch.full((64,), torch.nan)}, r"features\.0\.bias holds NaN"),
    ],
)
def test_weights_that_do_not_fit_are_refused(change: dict[str, Tensor | None], message: str, tmp_path: Path) -> None:
    values = {name: value for name, value in (torchvisions() | change).items() if value is not None}
    safetensors.torch.save_file(values, tmp_path / "alexnet.safetensors")
    with pytest.raises(TrainingError, match=message):
        load_weights(AlexNet(), find_weights(tmp_path / "alexnet.safetensors"))


def test_no_file_no_weights_and_no_network_for_them_are_said(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"none\.pth cannot be read \(No such file"):
        find_weights(tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("weights")
    with pytest.raises(TrainingError, match="not readable as weights"):
        load_weights(AlexNet(), find_weights(tmp_path / "text.pth"))
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    with pytest.raises(TrainingError, match=r"got a list; expected torchvision's AlexNet, features\.0\.weight"):
        load_weights(AlexNet(), find_weights(tmp_path / "list.pth"))
    with pytest.raises(TrainingError, match="add spectrogram_network=alexnet"):
        MFHCASettings(alexnet_weights="alexnet.pth")


# In a run


def test_a_run_says_what_alexnet_started_from(small_cache: Cache, tmp_path: Path) -> None:
    plain = train_fold(small_cache, 1, SPECTROGRAM, device="cpu")
    assert "AlexNet from random weights; [13] starts from ImageNet's" in plain.record["caveats"]
    assert plain.record["alexnet"] is None
    assert plain.record["parameters"] == CONVOLUTIONS + 9216 * 128 + 128 + 128 * 128 * 2 + 128 * 2 + 128 * 4 + 4
    torch.save(torchvisions(), file := tmp_path / "owt.pth")
    weights = ("alexnet_weights", str(file))
    options = replace(SPECTROGRAM, changes=(*SPECTROGRAM.changes, weights))
    run = tmp_path / "run"
    (result,) = cross_validate(small_cache, options, fold=1, run=run, device="cpu")
    assert not [line for line in result.record["caveats"] if "AlexNet" in line]
    assert result.record["alexnet"] == {"file": str(file), "sha256": find_weights(file).sha256}
    job = prepare(small_cache, options, "cpu")
    fresh = make_model(job, model_settings(job))
    assert torch.equal(fresh.state_dict()["mf.features.0.weight"], torchvisions()["features.0.weight"])
    # The same file elsewhere is the same run; other weights are another.
    moved = file.rename(tmp_path / "moved.pth")
    options = replace(SPECTROGRAM, changes=(*SPECTROGRAM.changes, ("alexnet_weights", str(moved))))
    cross_validate(small_cache, options, fold=1, run=run, device="cpu")
    torch.save(torchvisions(seed=8), moved)
    with pytest.raises(TrainingError, match="alexnet_weights"):
        cross_validate(small_cache, options, fold=2, run=run, device="cpu")
    moved.unlink()
    # A checkpoint needs the file no more.
    model, scaling, _ = load_checkpoint(run / "fold01" / "model.safetensors")
    assert scaling is not None
    for name, value in result.model().state_dict().items():
        assert torch.equal(value, model.state_dict()[name])


def test_a_file_that_changes_during_training_is_noticed(small_cache: Cache, tmp_path: Path) -> None:
    torch.save(torchvisions(), file := tmp_path / "owt.pth")
    options = replace(SPECTROGRAM, changes=(*SPECTROGRAM.changes, ("alexnet_weights", str(file))))
    job = prepare(small_cache, options, "cpu")
    torch.save(torchvisions(seed=8), file)
    with pytest.raises(TrainingError, match="changed while folds were trained"):
        make_model(job, model_settings(job))


def test_a_files_path_makes_no_folders_of_a_runs_name(small_cache: Cache) -> None:
    changes = parse_changes(["spectrogram-network=alexnet", "alexnet_weights=/home/me/alexnet owt.pth"])
    assert changes == (("spectrogram_network", "alexnet"), ("alexnet_weights", "/home/me/alexnet owt.pth"))
    assert changes_name(changes) == "-spectrogramnetworkalexnet-alexnetweightsalexnet-owt.pth"
    options = TrainOptions(changes=changes)
    assert "/" not in run_name(small_cache, options, {"spectrogram": "spectrogram"})


def test_a_run_and_a_checkpoint_of_before_there_was_a_choice_still_read(small_cache: Cache, tmp_path: Path) -> None:
    options = TrainOptions(preset="quick", epochs=1, threads=1)
    run = tmp_path / "run"
    cross_validate(small_cache, options, fold=1, run=run, device="cpu")
    identity = json.loads((run / "run.json").read_text())
    record = json.loads((run / "fold01" / "result.json").read_text())
    for name in ("spectrogram_network", "fusion", "alexnet_weights"):
        del identity["options"]["settings"][name], record["model_settings"][name]
    del record["alexnet"]
    (run / "run.json").write_text(json.dumps(identity))
    (run / "fold01" / "result.json").write_text(json.dumps(record))
    (result,) = cross_validate(small_cache, options, fold=1, run=run, device="cpu")
    assert result.model().state_dict().keys() == build_model().state_dict().keys()
