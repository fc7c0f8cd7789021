"""A frozen speech encoder: loaded whole or not at all, and run exactly.

The one place that imports transformers. Weights come from safetensors, or from a ``.bin`` through the weights-only
loader; a checkpoint's own code is never run. A key missing from the checkpoint would be filled with random numbers,
so it is an error.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import pickle
import socket
import urllib.request
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import torch

from mfhca_cache.errors import EncoderError
from mfhca_cache.spec import SAMPLE_RATE, EncoderSpec

#: The built-in encoder of the demo and the tests: small, seeded, never trained.
RANDOM_TINY = "random-tiny"
#: Only used for masked training, so some checkpoints lack it.
_MAY_BE_MISSING = ("masked_spec_embed",)
#: What changes an encoder's numbers while its weights stay the same.
_ARCHITECTURE = (
    "model_type", "num_attention_heads", "hidden_act", "layer_norm_eps", "do_stable_layer_norm", "feat_extract_norm",
    "feat_extract_activation", "conv_stride", "conv_kernel", "num_conv_pos_embedding_groups",
)  # fmt: skip


class Encoder:
    """A frozen encoder on a device; make one with `load_encoder`.

    Attributes:
        width: size of the final hidden layer.
        weights_sha256: of the weights, whatever the file that they came in.
        architecture: what of the configuration decides the numbers beside the weights.
        normalise: whether the checkpoint's feature extractor standardises each clip.
        source: name, revision asked for, commit that the hub resolved, architecture.
        random_weights: the weights were never trained.
    """

    def __init__(self, model: Any, feature_extractor: Any, source: dict[str, Any], random_weights: bool) -> None:
        self._model = model
        self._feature_extractor = feature_extractor
        self.width = int(model.config.hidden_size)
        self.weights_sha256 = weights_sha256(model.state_dict())
        config = model.config.to_dict()
        self.architecture = {key: config[key] for key in _ARCHITECTURE if key in config}
        self.normalise = bool(getattr(feature_extractor, "do_normalize", False))
        self.source = source
        self.random_weights = random_weights

    def frames(self, samples: int) -> int:
        """Frames of the final hidden layer for so many samples at 16 kHz: 149 for 48,000."""
        return int(self._model._get_feat_extract_output_lengths(torch.tensor(samples)))

    def encode(self, clips: np.ndarray) -> torch.Tensor:
        """Final hidden layer of clips of one length, each normalised on its own, without an attention mask.

        Args:
            clips: float32 (B, samples) at 16 kHz.

        Returns:
            float32 (B, frames, width) on the CPU.
        """
        inputs = self._feature_extractor(list(clips), sampling_rate=SAMPLE_RATE, return_tensors="pt")
        device = next(self._model.parameters()).device
        with torch.inference_mode(), exact_float32():
            hidden = self._model(inputs["input_values"].to(device, torch.float32)).last_hidden_state
        result: torch.Tensor = hidden.float().cpu()
        return result


def load_encoder(spec: EncoderSpec, device: str = "cpu") -> Encoder:
    """Load an encoder for inference in float32.

    Raises:
        EncoderError: not on this computer and the hub cannot be reached (the message says what to download and where
            to put it), weights missing or of another shape, no speech encoder, or no known normalisation.
    """
    if spec.name == RANDOM_TINY:
        model, feature_extractor = _random_tiny()
        note = "small random weights, seed 0; its features mean nothing"
        return Encoder(_frozen(model, device), feature_extractor, {"name": RANDOM_TINY, "note": note}, True)
    folder = local_folder(spec.name)
    if folder and spec.revision:
        raise EncoderError(f"{folder} is a local folder, which has no revisions; leave --revision out")
    place: dict[str, Any] = {"pretrained_model_name_or_path": str(folder or spec.name), "local_files_only": True}
    if not folder:
        place["revision"] = spec.revision or "main"
    try:
        model, feature_extractor = _load(spec, place)
    except EncoderError:
        # What is not whole on this computer is fetched, if there is a hub to ask.
        if folder or not _hub_answers():
            raise
        model, feature_extractor = _load(spec, {**place, "local_files_only": False})
    source = {
        "name": spec.name,
        "revision": spec.revision,
        "commit": getattr(model.config, "_commit_hash", None),
        "architecture": type(model).__name__,
    }
    # A checkpoint made for timing says so in its config.json, and its features stay marked for ever.
    random_weights = bool(getattr(model.config, "random_weights", False))
    return Encoder(_frozen(model, device), feature_extractor, source, random_weights)


def weights_sha256(state: dict[str, torch.Tensor]) -> str:
    """Digest of a model's weights that does not depend on how a library spells their names or in which file they came.

    SHA-256 over the sorted SHA-256 of each tensor's shape, type and bytes.
    """
    parts = []
    for name, tensor in state.items():
        # What a checkpoint may lack is filled with random numbers, and never used for inference.
        if name.endswith(_MAY_BE_MISSING):
            continue
        array = np.ascontiguousarray(tensor.detach().cpu().numpy())
        parts.append(hashlib.sha256(f"{array.shape}{array.dtype}".encode() + array.tobytes()).digest())
    return hashlib.sha256(b"".join(sorted(parts))).hexdigest()


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """Multiply in full float32: cuDNN and cuBLAS would else use TF32, with 10 bits of mantissa."""
    matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn


def _frozen(model: Any, device: str) -> Any:
    return model.float().eval().requires_grad_(False).to(device)


def _random_tiny() -> tuple[Any, Any]:
    """A HuBERT of the usual frame rate (149 frames a clip), 64 wide, two layers, seeded."""
    from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

    config = HubertConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        conv_dim=(32,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
    )
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        torch.manual_seed(0)
        model = HubertModel(config)
    return model, Wav2Vec2FeatureExtractor(do_normalize=True)


def _load(spec: EncoderSpec, place: dict[str, Any]) -> tuple[Any, Any]:
    from transformers import AutoFeatureExtractor, AutoModel

    try:
        # A download of hundreds of megabytes keeps the hub's own progress bar.
        with quiet_transformers() if place["local_files_only"] else contextlib.nullcontext():
            feature_extractor = AutoFeatureExtractor.from_pretrained(**place, trust_remote_code=False)
            model, info = AutoModel.from_pretrained(
                **place, trust_remote_code=False, weights_only=True, output_loading_info=True, dtype=torch.float32
            )
    except Exception as error:  # A damaged checkpoint can make its readers raise anything.
        raise EncoderError(_load_failure(spec, place, error)) from error
    missing = [key for key in info["missing_keys"] if not key.endswith(_MAY_BE_MISSING)]
    if missing or info.get("mismatched_keys"):
        wrong = sorted(map(str, missing or info["mismatched_keys"]))
        raise EncoderError(
            f"encoder {spec.name!r}: its checkpoint lacks {len(wrong)} weights of {type(model).__name__}, the first "
            f"being {wrong[0]}; they would be random. Name a checkpoint that holds the whole encoder"
        )
    inputs = getattr(feature_extractor, "model_input_names", ["input_values"])
    if not hasattr(model, "_get_feat_extract_output_lengths") or inputs[0] != "input_values":
        raise EncoderError(
            f"encoder {spec.name!r} is a {model.config.model_type}; expected a model that takes the waveform, "
            "such as HuBERT, wav2vec 2.0 or WavLM"
        )
    if getattr(feature_extractor, "sampling_rate", SAMPLE_RATE) != SAMPLE_RATE:
        raise EncoderError(
            f"encoder {spec.name!r} expects {feature_extractor.sampling_rate} Hz; clips are cut at {SAMPLE_RATE} Hz"
        )
    return model, feature_extractor


def _load_failure(spec: EncoderSpec, place: dict[str, Any], error: Exception) -> str:
    folder = local_folder(spec.name)
    if isinstance(error, pickle.UnpicklingError):
        return f"encoder {spec.name!r}: its .bin holds more than weights and was not read; convert it to safetensors"
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if folder:
        absent = [name for name in ("config.json", "preprocessor_config.json") if not (folder / name).is_file()]
        if absent:
            return (
                f"encoder {folder}: {' and '.join(absent)} is missing; expected a folder as save_pretrained writes it: "
                "config.json, preprocessor_config.json (how the waveform is normalised) and model.safetensors. "
                "transformers' Wav2Vec2FeatureExtractor(do_normalize=…).save_pretrained(folder) writes the second"
            )
        return f"encoder {folder}: could not be loaded ({first})"
    if place["local_files_only"]:
        revision = f" --revision {spec.revision}" if spec.revision else ""
        return (
            f"encoder {spec.name!r} is neither a folder nor in this computer's Hugging Face cache, and the hub cannot "
            f"be reached. Where there is a network, run\n    hf download {spec.name}{revision} "
            f"--local-dir {spec.feature}\ncopy that folder here, and name it: --encoder {spec.feature}"
        )
    return f"encoder {spec.name!r}: the hub gave no such encoder ({first}); check the name and --revision"


def local_folder(name: str) -> Path | None:
    """The folder that an encoder's name means, or None where it is a name on the hub."""
    try:
        folder = Path(name).expanduser()
        return folder if folder.is_dir() else None
    except (OSError, RuntimeError, ValueError):
        return None


def _hub_answers() -> bool:
    """Whether the hub's name resolves; asked first, because the hub's client retries for half a minute."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if "https" in urllib.request.getproxies():
        return True  # A proxy resolves the name for us.
    try:
        socket.getaddrinfo(urlparse(constants.ENDPOINT).hostname, 443)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' bars, warnings and load reports off the terminal; what matters is raised as an error."""
    from transformers.utils import logging as hf_logging

    before, bar = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity(logging.CRITICAL)
    hf_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        hf_logging.set_verbosity(before)
        if bar:
            hf_logging.enable_progress_bar()
