"""Each equation against plain NumPy in float64, written from the paper's text and not from the module."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from mfhca_cache.errors import TrainingError
from mfhca_cache.models import build_model, count_parameters
from mfhca_cache.models.mfhca import GRF, HCA, MF, MFHCA
from mfhca_cache.models.resize import adaptive_average, resize
from mfhca_cache.models.settings import MFHCASettings, paper, released

Array = npt.NDArray[np.float64]
M = TypeVar("M", bound=nn.Module)
State = dict[str, Array]
EXACT = {"rtol": 1e-10, "atol": 1e-10}
#: A model small enough to test in milliseconds: an encoder of 9 frames, 64 wide, and 40 × 36 spectrograms.
SMALL: dict[str, Any] = {"encoder_width": 64, "encoder_frames": 9, "hidden": 16, "channels": (4, 6, 10), "dropout": 0.0}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Small tensors are slower on several threads, much so on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# --- plain NumPy -----------------------------------------------------------------------------------------------------


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def swish(x: Array) -> Array:
    return x * sigmoid(x)


def hardswish(x: Array) -> Array:
    return x * np.clip(x + 3, 0, 6) / 6


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


def conv(x: Array, state: State, name: str, padding: tuple[int, int] = (0, 0), dilation: int = 1) -> Array:
    weight = state[f"{name}.weight"]
    rows, columns = weight.shape[2:]
    x = np.pad(x, ((0, 0), (0, 0), (padding[0],) * 2, (padding[1],) * 2))
    height, width = x.shape[2] - dilation * (rows - 1), x.shape[3] - dilation * (columns - 1)
    y = np.zeros((len(x), len(weight), height, width))
    for i in range(rows):
        for j in range(columns):
            part = x[:, :, i * dilation : i * dilation + height, j * dilation : j * dilation + width]
            y += np.einsum("oc,bchw->bohw", weight[:, :, i, j], part)
    return y + state[f"{name}.bias"][:, None, None] if f"{name}.bias" in state else y


def norm(x: Array, state: State, name: str) -> Array:
    mean, var, gain, bias = (
        state[f"{name}.{k}"][:, None, None] for k in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / np.sqrt(var + 1e-5) * gain + bias


def linear(x: Array, state: State, name: str) -> Array:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def average_pool(x: Array, rate: int) -> Array:
    height, width = x.shape[2] // rate, x.shape[3] // rate
    y = np.empty((*x.shape[:2], height, width))
    for i in range(height):
        for j in range(width):
            y[:, :, i, j] = x[:, :, i * rate : (i + 1) * rate, j * rate : (j + 1) * rate].mean((2, 3))
    return y


def max_pool(x: Array, kernel: int, stride: int) -> Array:
    half = kernel // 2
    x = np.pad(x, ((0, 0), (0, 0), (half, half), (half, half)), constant_values=-np.inf)
    height, width = (x.shape[2] - kernel) // stride + 1, (x.shape[3] - kernel) // stride + 1
    y = np.empty((*x.shape[:2], height, width))
    for i in range(height):
        for j in range(width):
            y[:, :, i, j] = x[:, :, i * stride : i * stride + kernel, j * stride : j * stride + kernel].max((2, 3))
    return y


def adaptive(x: Array, rows: int, columns: int) -> Array:
    height, width = x.shape[-2:]
    y = np.empty((*x.shape[:-2], rows, columns))
    for i in range(rows):
        for j in range(columns):
            top, bottom = i * height // rows, -(-(i + 1) * height // rows)
            left, right = j * width // columns, -(-(j + 1) * width // columns)
            y[..., i, j] = x[..., top:bottom, left:right].mean((-2, -1))
    return y


def bilinear(x: Array, size: tuple[int, int]) -> Array:
    for axis, n_out in ((2, size[0]), (3, size[1])):
        n_in = x.shape[axis]
        source = np.clip((np.arange(n_out) + 0.5) * n_in / n_out - 0.5, 0, n_in - 1)
        low = np.floor(source).astype(int)
        high = np.minimum(low + 1, n_in - 1)
        share = (source - low).reshape((-1, 1) if axis == 2 else (-1,))
        x = np.take(x, low, axis) * (1 - share) + np.take(x, high, axis) * share
    return x


def nearest(x: Array, size: tuple[int, int]) -> Array:
    rows, columns = (np.arange(n) * x.shape[axis] // n for axis, n in ((2, size[0]), (3, size[1])))
    return x[:, :, rows][:, :, :, columns]


def lstm(x: Array, state: State, suffix: str) -> Array:
    """One direction of the LSTM over (B, L, D), gates in torch's order i, f, g, o."""
    hidden = state[f"weight_hh_l0{suffix}"].shape[1]
    h, c, out = np.zeros((len(x), hidden)), np.zeros((len(x), hidden)), np.empty((*x.shape[:2], hidden))
    for t in range(x.shape[1]) if not suffix else reversed(range(x.shape[1])):
        gates = x[:, t] @ state[f"weight_ih_l0{suffix}"].T + state[f"bias_ih_l0{suffix}"]
        gates += h @ state[f"weight_hh_l0{suffix}"].T + state[f"bias_hh_l0{suffix}"]
        i, f, g, o = np.split(gates, 4, 1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        out[:, t] = h
    return out


def inside(state: State, name: str) -> State:
    return {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}


def grf(x: Array, state: State, choices: MFHCASettings) -> dict[str, Array]:
    """Every quantity of Eqs. 1–8 by its name in the paper."""
    height, width = x.shape[2:]
    q: dict[str, Array] = {"z_h": x.sum(3) / width, "z_w": x.sum(2) / height}  # Eqs. 1, 2: (B, C, H), (B, C, W)
    z = np.concatenate([q["z_h"], q["z_w"]], 2)[..., None]
    activation = hardswish if choices.gate_activation == "hardswish" else swish
    q["f"] = activation(norm(conv(z, state, "squeeze"), state, "squeeze_norm"))  # Eq. 3
    q["g_h"] = sigmoid(conv(q["f"][:, :, :height], state, "gate_h"))[..., 0]  # Eq. 4: (B, C, H)
    q["g_w"] = sigmoid(conv(q["f"][:, :, height:], state, "gate_w"))[..., 0]  # Eq. 5: (B, C, W)
    q["Y_a"] = np.einsum("bchw,bch,bcw->bchw", x, q["g_h"], q["g_w"])  # Eq. 6
    q["pooled"] = average_pool(x, choices.rate)
    padding = (choices.dilation, choices.dilation)
    q["context"] = norm(conv(q["pooled"], state, "context", padding, choices.dilation), state, "context_norm")
    up = nearest if choices.upsample == "nearest" else bilinear
    q["Y_b"] = x + up(q["context"], (height, width))  # Eq. 7
    if choices.block == "paper":
        q["Y"] = x + q["Y_a"] + q["Y_b"]  # Eq. 8
    else:
        inner = relu(norm(conv(q["Y_a"], state, "residual.0", (1, 1)), state, "residual.1"))
        q["Y"] = relu(norm(conv(inner, state, "residual.3", (1, 1)), state, "residual.4") + x + q["Y_b"])
    return q


def mf(image: Array, state: State, choices: MFHCASettings) -> Array:
    if choices.long_kernel_along == "frequency":
        image = image.swapaxes(2, 3)
    maps = []
    for branch, padding in (("0", (4, 0)), ("1", (0, 3))):
        x = conv(image, state, f"stem.{branch}.0", padding)
        maps.append(relu(norm(x, state, f"stem.{branch}.1")) if choices.stem_norm_relu else x)
    x = max_pool(np.concatenate(maps, 1), *choices.pool)  # the paper's order: ReLU, then pooling
    for number in range(len(choices.channels)):
        if number:
            lift = f"lift.{number - 1}"
            half = choices.lift_kernel // 2
            x = relu(norm(conv(x, state, f"{lift}.0", (half, half)), state, f"{lift}.1"))
        x = grf(x, inside(state, f"blocks.{number}"), choices)["Y"]
    return adaptive(x, *choices.spec_pool).reshape(len(x), -1)


def hca(f_spec: Array, f_hubert: Array, state: State, choices: MFHCASettings) -> dict[str, Array]:
    """Every quantity of Eqs. 9–11, in evaluation mode (no dropout)."""
    weights, grid = inside(state, "lstm"), choices.attention_grid
    f_lstm = np.concatenate([lstm(f_hubert, weights, ""), lstm(f_hubert, weights, "_reverse")], 2)
    w = relu(linear(f_spec, state, "weights"))
    f_att = np.einsum("bl,bld->bd", w, f_lstm)
    if choices.attention_softmax:
        f_att = np.exp(f_att) / np.exp(f_att).sum(1, keepdims=True)  # Eq. 9
    f_att = f_att * choices.attention_scale
    columns = f_hubert.shape[2] // grid
    product = adaptive(f_hubert, grid, columns) @ f_att.reshape(-1, columns, grid)
    f_attended = linear(product.reshape(len(w), -1), state, "attended")  # Eq. 10
    fused = [relu(linear(f_spec, state, "spec_out")), relu(linear(f_attended, state, "encoder_out"))]  # Eq. 11
    return {
        "f_lstm": f_lstm,
        "f_att": f_att,
        "product": product,
        "f'_att": f_attended,
        "f''_att": np.concatenate(fused, 1),
    }


def classify(x: Array, state: State) -> Array:
    for number, last in (("1", False), ("3", False), ("5", True)):
        x = linear(x, state, number)
        x = x if last else relu(x)
    return x


# --- helpers ---------------------------------------------------------------------------------------------------------


def shaken(model: M, seed: int = 0) -> M:
    """The model in float64 and evaluation mode, with random weights, batch-norm weights and running statistics."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                assert tensor is not None
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator, dtype=torch.float64))
            for tensor in (module.bias.data, module.running_mean):
                assert tensor is not None
                tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=torch.float64) / 2)
    return model


def arrays(model: nn.Module) -> State:
    return {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def seen(model: nn.Module, *names: str) -> dict[str, tuple[Array, Array]]:
    """Filled when the model runs: each submodule's first input and its output."""
    store: dict[str, tuple[Array, Array]] = {}

    def keep(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            store[name] = inputs[0].detach().numpy(), output.detach().numpy()

        return hook

    for name in names:
        model.get_submodule(name).register_forward_hook(keep(name))
    return store


def small(choices: MFHCASettings, **changes: Any) -> MFHCASettings:
    return dataclasses.replace(choices, **(SMALL | {"rate": min(choices.rate, 4)} | changes))


VARIANTS = [paper(), released(), released(in_channels=1), paper(stem_norm_relu=False, pool=(2, 2), lift_kernel=1)]


# --- GRF, Eqs. 1-8 ---------------------------------------------------------------------------------------------------

GRF_CASES = [
    (paper(), 16, 4, (19, 13)),
    (paper(), 48, 2, (12, 9)),
    (paper(), 320, 3, (7, 8)),  # C / 32 > 8
    (paper(gate_activation="hardswish", upsample="nearest", dilation=2), 8, 3, (13, 10)),
    (released(), 16, 16, (35, 50)),
    (released(upsample="bilinear", gate_activation="swish"), 6, 4, (9, 17)),
]


@pytest.mark.parametrize(("choices", "channels", "rate", "size"), GRF_CASES)
def test_grf_is_equations_1_to_8(choices: MFHCASettings, channels: int, rate: int, size: tuple[int, int]) -> None:
    block = shaken(GRF(channels, rate, choices))
    x = normal(2, channels, *size)
    store = seen(block, "squeeze", "gate_activation", "gate_h", "gate_w", "context", "context_norm")
    y = block(x).detach().numpy()
    expected = grf(x.numpy(), arrays(block), dataclasses.replace(choices, rate=rate))
    z = np.concatenate([expected["z_h"], expected["z_w"]], 2)[..., None]
    np.testing.assert_allclose(store["squeeze"][0], z, **EXACT)  # Eqs. 1, 2
    np.testing.assert_allclose(store["gate_activation"][1], expected["f"], **EXACT)  # Eq. 3
    assert expected["f"].shape[1] == max(8, channels // 32)
    np.testing.assert_allclose(sigmoid(store["gate_h"][1].squeeze(3)), expected["g_h"], **EXACT)  # Eq. 4
    np.testing.assert_allclose(sigmoid(store["gate_w"][1].squeeze(3)), expected["g_w"], **EXACT)  # Eq. 5
    if choices.block == "released":
        assert block.residual is not None
        gated = seen(block, "residual.0")
        block(x)
        np.testing.assert_allclose(gated["residual.0"][0], expected["Y_a"], **EXACT)  # Eq. 6
    np.testing.assert_allclose(store["context"][0], expected["pooled"], **EXACT)  # Eq. 7
    np.testing.assert_allclose(store["context_norm"][1], expected["context"], **EXACT)  # Eq. 7
    np.testing.assert_allclose(y, expected["Y"], **EXACT)  # Eqs. 6–8


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", [{}, {"upsample": "nearest", "gate_activation": "hardswish", "dilation": 2}])
def test_a_block_of_zeros_gives_two_and_a_quarter_times_its_input(training: bool, options: dict[str, Any]) -> None:
    block = GRF(16, 4, paper(**options)).train(training)
    for parameter in block.parameters():
        nn.init.zeros_(parameter)
    x = normal(2, 16, 21, 18).float()
    assert torch.equal(block(x), 2.25 * x)


def test_the_call_forms_without_settings() -> None:
    block, network = GRF(16, 4), MF((16, 32, 48), 4)
    assert count_parameters(block) == count_parameters(GRF(channels=16, rate=4))
    assert network.width == MF(channels=(16, 32, 48), rate=4).width == 288
    assert network(torch.zeros(1, 1, 300, 200)).shape == (1, 288)
    assert block(torch.zeros(1, 16, 150, 100)).shape == (1, 16, 150, 100)


def test_a_map_smaller_than_the_rate_is_refused() -> None:
    with pytest.raises(TrainingError, match=r"got a map of 9 × 20; rate 16 .* at least 16 × 16"):
        GRF(8, 16)(torch.zeros(1, 8, 9, 20))


# --- MF --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("choices", [small(choices) for choices in VARIANTS])
def test_mf_is_stem_pooling_blocks_and_lifts(choices: MFHCASettings) -> None:
    network = shaken(MF(choices.channels, choices.rate, choices))
    image = normal(2, choices.in_channels, 43, 36)
    expected = mf(image.numpy(), arrays(network), choices)
    assert expected.shape == (2, network.width)
    np.testing.assert_allclose(network(image).detach().numpy(), expected, **EXACT)


def test_the_shapes_of_the_paper() -> None:
    network = MF().eval()
    store = seen(network, "stem.0.0", "stem.1.0", "blocks.0", "blocks.1", "blocks.2")
    with torch.no_grad():
        assert network(torch.zeros(2, 1, 300, 200)).shape == (2, 288)
    assert store["stem.0.0"][1].shape == store["stem.1.0"][1].shape == (2, 8, 299, 199)
    assert [store[f"blocks.{n}"][1].shape for n in range(3)] == [(2, c, 150, 100) for c in (16, 32, 48)]
    assert [layer[0].kernel_size for layer in network.stem] == [(10, 2), (2, 8)]  # type: ignore[index]


@pytest.mark.parametrize("along", ["time", "frequency"])
def test_which_way_the_long_kernel_runs(along: Any) -> None:
    network = MF(settings=paper(long_kernel_along=along)).eval()
    store = seen(network, "stem.0.0")
    with torch.no_grad():
        network(torch.zeros(1, 1, 300, 200))
    assert store["stem.0.0"][1].shape[2:] == ((299, 199) if along == "time" else (199, 299))


@pytest.mark.parametrize("channels", [(16, 32), (16, 32, 64), (16, 32, 48, 64)])
def test_other_channels_of_table_iii(channels: tuple[int, ...]) -> None:
    with torch.no_grad():
        assert MF(channels)(torch.zeros(1, 1, 40, 40)).shape == (1, 6 * channels[-1])


@pytest.mark.parametrize("shape", [(2, 300, 200), (2, 3, 30, 20), (2, 1, 1, 20)])
def test_an_image_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(TrainingError, match=r"spectrogram image: got shape .*expected \(B, 1, T, F\)"):
        MF()(torch.zeros(shape))


# --- HCA, Eqs. 9-11 --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{}, {"attention_softmax": False}, {"attention_scale": 24.0}, {"encoder_width": 96, "attention_grid": 8}],
)
def test_hca_is_equations_9_to_11(options: dict[str, Any]) -> None:
    choices = small(paper(), **options)
    network = shaken(HCA(20, choices))
    f_spec, f_hubert = normal(3, 20), normal(3, choices.encoder_frames, choices.encoder_width, seed=2)
    store = seen(network, "weights", "attended")
    fused = network(f_spec, f_hubert).detach().numpy()
    expected = hca(f_spec.numpy(), f_hubert.numpy(), arrays(network), choices)
    f_lstm = network.lstm(f_hubert)[0].detach().numpy()
    np.testing.assert_allclose(f_lstm, expected["f_lstm"], **EXACT)
    if choices.attention_softmax:
        np.testing.assert_allclose(expected["f_att"].sum(1), choices.attention_scale, **EXACT)  # Eq. 9
    product = store["attended"][0].reshape(expected["product"].shape)
    np.testing.assert_allclose(product, expected["product"], **EXACT)  # Eqs. 9, 10
    np.testing.assert_allclose(store["attended"][1], expected["f'_att"], **EXACT)  # Eq. 10
    np.testing.assert_allclose(fused, expected["f''_att"], **EXACT)  # Eq. 11


@pytest.mark.parametrize("shape", [(2, 8, 64), (2, 9, 32), (9, 64)])
def test_encoder_features_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(TrainingError, match=r"got shape .*expects \(B, 9, 64\); set encoder_frames"):
        HCA(288, small(paper()))(torch.zeros(2, 288), torch.zeros(shape))


@pytest.mark.parametrize(("width", "grid"), [(100, 32), (9, 3)])
def test_a_width_that_does_not_fold_is_refused(width: int, grid: int) -> None:
    with pytest.raises(TrainingError, match=rf"encoder_width: got {width}; expected an even multiple of {grid}"):
        HCA(288, paper(encoder_width=width, attention_grid=grid))


# --- MFHCA -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("choices", [small(choices) for choices in VARIANTS])
def test_mfhca_is_all_of_it(choices: MFHCASettings) -> None:
    model = shaken(MFHCA(choices))
    spectrogram, encoder = normal(2, 40, 36), normal(2, 9, 64, seed=2)
    state = arrays(model)
    image = np.repeat(spectrogram.numpy()[:, None], choices.in_channels, 1)
    f_spec = mf(image, inside(state, "mf"), choices)
    fused = hca(f_spec, encoder.numpy(), inside(state, "hca"), choices)["f''_att"]
    np.testing.assert_allclose(model.features(spectrogram, encoder).detach().numpy(), fused, **EXACT)
    logits = classify(fused, inside(state, "classifier"))
    np.testing.assert_allclose(model(spectrogram, encoder).detach().numpy(), logits, **EXACT)


def test_the_released_parameter_counts() -> None:
    model = MFHCA(released())
    never_used = 256 * 149 + 149
    assert count_parameters(model) == 4_718_582 - never_used == 4_680_289
    assert count_parameters(model.mf) == 119_592
    assert count_parameters(MF((16, 32, 48), 16, released(in_channels=1))) == 119_016
    assert count_parameters(model.hca.lstm) == 3_545_088


@pytest.mark.parametrize(
    ("frames", "bins", "encoder_frames", "width"), [(500, 128, 99, 64), (100, 200, 49, 1024), (64, 65, 1, 32)]
)
@pytest.mark.parametrize("variant", [paper, released])
def test_other_clips_and_encoders(frames: int, bins: int, encoder_frames: int, width: int, variant: Any) -> None:
    model = MFHCA(variant(encoder_frames=encoder_frames, encoder_width=width, n_classes=7))
    logits = model(spectrogram=torch.randn(2, frames, bins), encoder=torch.randn(2, encoder_frames, width))
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()


def unmoved(model: nn.Module, *inputs: Tensor) -> set[str]:
    """Names of the parameters whose gradient of the loss is zero, but for rounding."""
    F.cross_entropy(model(*inputs), torch.arange(len(inputs[0])) % 4).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {name for name, gradient in gradients.items() if gradient is None or gradient.abs().max() < 1e-14}


@pytest.mark.parametrize("choices", [small(choices, channels=(4, 6)) for choices in VARIANTS[:2]])
def test_gradients_reach_every_parameter(choices: MFHCASettings) -> None:
    torch.manual_seed(0)
    model = MFHCA(choices).double()
    inputs = normal(8, 40, 36), normal(8, 9, 64, seed=2)
    # Batch norm takes its input's mean away in training, and with it a bias right before it.
    before_norm = {"mf.stem.0.0.bias", "mf.stem.1.0.bias", "mf.lift.0.0.bias"}
    before_norm |= {f"mf.blocks.{n}.{layer}.bias" for n in (0, 1) for layer in ("squeeze", "context")}
    assert unmoved(model.train(), *inputs) == before_norm
    model.zero_grad()
    assert unmoved(model.eval(), *inputs) == set()


@pytest.mark.parametrize("variant", [paper, released])
def test_clips_of_a_batch_do_not_touch_each_other(variant: Any) -> None:
    model = shaken(MFHCA(small(variant())))
    spectrogram, encoder = normal(3, 40, 36), normal(3, 9, 64, seed=2)
    alone = torch.cat([model(spectrogram[i : i + 1], encoder[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(model(spectrogram, encoder), alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("variant", [paper, released])
def test_the_memory_format_changes_nothing(variant: Any, training: bool) -> None:
    torch.manual_seed(0)
    model = MFHCA(small(variant(), channels=(16, 32))).double().train(training)
    spectrogram, encoder = normal(4, 44, 40), normal(4, 9, 64, seed=2)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    results = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        model.load_state_dict(state)
        model.to(memory_format=memory_format)  # type: ignore[call-overload]
        model.zero_grad()
        logits = model(spectrogram, encoder)
        logits.square().sum().backward()
        gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        results.append((logits.detach(), torch.cat(gradients)))
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-11)
    image = normal(2, 16, 30, 20)
    block = model.mf.blocks[0]
    torch.testing.assert_close(block(image), block(image.contiguous(memory_format=torch.channels_last)), **EXACT)


def test_the_same_seed_gives_the_same_model() -> None:
    def run(seed: int) -> tuple[dict[str, Tensor], Tensor]:
        torch.manual_seed(seed)
        model = MFHCA(small(paper(), dropout=0.1))
        return model.state_dict(), model(normal(2, 40, 36).float(), normal(2, 9, 64).float())

    (first, logits), (second, again) = run(3), run(3)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(logits, again)
    assert not torch.equal(logits, run(4)[1])


def test_autocast_on_a_cpu_runs_and_stays_close() -> None:
    torch.manual_seed(0)
    model = MFHCA(small(paper())).eval()
    inputs = normal(2, 40, 36).float(), normal(2, 9, 64).float()
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(*inputs)
    torch.testing.assert_close(rough.float(), model(*inputs), rtol=0.1, atol=0.05)


@pytest.mark.parametrize("shape", [(300, 200), (2, 1, 300, 200)])
def test_a_spectrogram_of_other_axes_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(TrainingError, match=r"spectrogram: got shape .*expected \(B, T, F\)"):
        MFHCA(small(paper()))(torch.zeros(shape), torch.zeros(2, 9, 64))


# --- adaptive_average ------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.tuples(*[st.integers(1, 40)] * 4), st.booleans())
def test_adaptive_average_is_torchs(sizes: tuple[int, int, int, int], last: bool) -> None:
    x = normal(2, 3, *sizes[:2]).float()
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    x.requires_grad_()
    pooled, expected = adaptive_average(x, sizes[2:]), F.adaptive_avg_pool2d(x, sizes[2:])
    torch.testing.assert_close(pooled, expected, rtol=1e-6, atol=1e-6)
    weights = normal(*pooled.shape, seed=3).float()
    gradients = [torch.autograd.grad((y * weights).sum(), x)[0] for y in (pooled, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(adaptive_average(x[:, 0], sizes[2:]), expected[:, 0], rtol=1e-6, atol=1e-6)


def test_adaptive_average_first_used_for_inference_still_trains() -> None:
    x = torch.ones(1, 1, 61, 59)
    with torch.inference_mode():
        adaptive_average(x, (7, 5))
    x.requires_grad_()
    adaptive_average(x, (7, 5)).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("sizes", [((37, 25), (150, 100)), ((9, 6), (150, 100)), ((1, 1), (3, 4)), ((5, 7), (5, 7))])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_upsampling_by_matrices_is_torchs(mode: Any, sizes: Any, memory_format: Any) -> None:
    x = normal(2, 3, *sizes[0]).contiguous(memory_format=memory_format)
    torch.testing.assert_close(resize(x, sizes[1], mode), F.interpolate(x, size=sizes[1], mode=mode), **EXACT)


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("choices", [*VARIANTS, paper(channels=(16, 32), attention_scale=2)])
def test_settings_survive_json(choices: MFHCASettings) -> None:
    assert MFHCASettings.from_dict(json.loads(json.dumps(dataclasses.asdict(choices)))) == choices


def test_the_two_variants() -> None:
    assert paper() == MFHCASettings()
    changed = {
        field.name: getattr(released(), field.name)
        for field in dataclasses.fields(MFHCASettings)
        if getattr(released(), field.name) != getattr(paper(), field.name)
    }
    assert changed == {
        "in_channels": 3,
        "rate": 16,
        "long_kernel_along": "frequency",
        "gate_activation": "hardswish",
        "upsample": "nearest",
        "dilation": 2,
        "block": "released",
        "attention_softmax": False,
    }


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"chanels": [16]}, "unknown chanels; known are n_classes"),
        ({"channels": []}, r"channels: got \(\); expected one or more whole numbers"),
        ({"channels": 16}, "channels: got 16"),
        ({"channels": [15, 32]}, "the first must be even"),
        ({"channels": [16, 32.0]}, "channels: got"),
        ({"rate": 0}, "rate: got 0; expected a whole number of 1 or more"),
        ({"rate": True}, "rate: got True"),
        ({"spec_pool": [2, 3, 4]}, "spec_pool: got .*expected 2 whole numbers"),
        ({"upsample": "cubic"}, "upsample: got 'cubic'; expected 'bilinear' or 'nearest'"),
        ({"attention_softmax": "no"}, "attention_softmax: got 'no'; expected True or False"),
        ({"attention_scale": float("nan")}, "attention_scale: got nan; expected a finite number"),
        ({"dropout": 1.0}, "dropout: got 1.0"),
        ({"lift_kernel": 2}, "lift_kernel: got 2; expected an odd size"),
    ],
)
def test_impossible_settings_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        MFHCASettings.from_dict(values)


def test_mf_refuses_what_its_settings_refuse() -> None:
    with pytest.raises(TrainingError, match="the first must be even"):
        MF((15, 32))


def test_build_model_gives_the_whole_model() -> None:
    model = build_model("mfhca", ("encoder", "spectrogram"), small(paper()))
    assert isinstance(model, MFHCA)
    assert model(spectrogram=torch.zeros(2, 40, 36), encoder=torch.zeros(2, 9, 64)).shape == (2, 4)
