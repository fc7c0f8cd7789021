"""The one-input models, and `build_model`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from mfhca_cache.errors import TrainingError
from mfhca_cache.models import MFHCA, EncoderOnly, SpectrogramOnly, build_model, count_parameters, paper, released


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Small tensors are slower on several threads, much so on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_the_spectrogram_alone_is_mf_and_the_classifier() -> None:
    torch.manual_seed(0)
    model = SpectrogramOnly(paper()).double().eval()
    x = torch.randn(2, 50, 40, dtype=torch.float64)
    f_spec = model.mf(x[:, None])
    torch.testing.assert_close(model.features(x), f_spec)
    first, second, third = (model.classifier[n] for n in (1, 3, 5))
    assert model(spectrogram=x).shape == (2, 4)
    torch.testing.assert_close(model(x), third(F.relu(second(F.relu(first(f_spec))))))
    assert count_parameters(model) == count_parameters(model.mf) + (288 * 128 + 128) + (128 * 128 + 128) + (128 * 4 + 4)


def test_three_channels_are_copies_of_the_spectrogram() -> None:
    model = SpectrogramOnly(released(rate=4)).eval()
    x = torch.randn(2, 50, 40)
    torch.testing.assert_close(model.features(x), model.mf(torch.stack([x, x, x], 1)))


@pytest.mark.parametrize("shape", [(149, 768), (99, 64), (249, 1024), (5, 100)])
def test_the_encoder_alone_is_pooling_and_the_classifier(shape: tuple[int, int]) -> None:
    model = EncoderOnly(paper()).double().eval()
    x = torch.randn(2, *shape, dtype=torch.float64)
    pooled = F.adaptive_avg_pool2d(x, (12, 64)).flatten(1)
    torch.testing.assert_close(model.features(x), pooled, rtol=1e-10, atol=1e-10)
    first, second, third = (model.classifier[n] for n in (1, 3, 5))
    torch.testing.assert_close(model(encoder=x), third(F.relu(second(F.relu(first(pooled))))), rtol=1e-10, atol=1e-10)
    assert count_parameters(model) == (768 * 128 + 128) + (128 * 128 + 128) + (128 * 4 + 4)


@pytest.mark.parametrize(("model", "shape"), [(SpectrogramOnly, (2, 1, 30, 20)), (EncoderOnly, (149, 768))])
def test_other_axes_are_refused(model: Any, shape: tuple[int, ...]) -> None:
    with pytest.raises(TrainingError, match="got shape"):
        model()(torch.zeros(shape))


@pytest.mark.parametrize("model", [SpectrogramOnly, EncoderOnly])
def test_gradients_reach_the_whole_of_it(model: Any) -> None:
    torch.manual_seed(0)
    network = model(paper(hidden=32, channels=(4, 6)))
    F.cross_entropy(network(torch.randn(4, 48, 48)), torch.arange(4)).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize(
    ("inputs", "kind"),
    [
        (("spectrogram", "encoder"), MFHCA),
        (["encoder", "spectrogram"], MFHCA),
        (("spectrogram",), SpectrogramOnly),
        (("encoder",), EncoderOnly),
    ],
)
def test_build_model_goes_by_the_inputs(inputs: Any, kind: type) -> None:
    assert type(build_model("mfhca", inputs, paper(n_classes=8))) is kind


def test_an_encoder_of_an_odd_width_can_stand_alone() -> None:
    model = build_model("mfhca", ("encoder",), paper(encoder_width=100))
    assert model(encoder=torch.zeros(1, 20, 100)).shape == (1, 4)


@pytest.mark.parametrize("name", ["MFHCA", "", "resnet"])
def test_an_unknown_model_is_refused(name: str) -> None:
    with pytest.raises(TrainingError, match=f"model: got {name!r}; expected one of mfhca"):
        build_model(name)


@pytest.mark.parametrize("inputs", [(), ("text",), ("spectrogram", "text"), "spectrogram"])
def test_unknown_inputs_are_refused(inputs: Any) -> None:
    with pytest.raises(TrainingError, match="expected one or both of spectrogram, encoder"):
        build_model("mfhca", inputs)


def test_frozen_parameters_are_not_counted() -> None:
    model = EncoderOnly()
    for parameter in model.classifier[1].parameters():
        parameter.requires_grad_(False)
    assert count_parameters(model) == (128 * 128 + 128) + (128 * 4 + 4)
