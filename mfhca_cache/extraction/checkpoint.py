"""A frozen encoder's checkpoint, loaded whole or not at all.

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

import numpy as np
import torch

from mfhca_cache.errors import EncoderError
from mfhca_cache.spec import SAMPLE_RATE, EncoderSpec

#: The built-in encoder of the demo and the tests: small, seeded, never trained.
RANDOM_TINY = "random-tiny"
#: Only used for masked training, so some checkpoints lack it.
MAY_BE_MISSING = ("masked_spec_embed",)


@dataclass(frozen=True)
class Checkpoint:
    """A frozen model in float32 on a device, and what is known of it.

    Attributes:
        model: of transformers, in eval mode.
        preprocessor: its feature extractor, or its tokenizer.
        source: name, revision asked for, commit that the hub resolved, class, number of parameters.
        random_weights: the weights were never trained.
    """

    model: Any
    preprocessor: Any
    source: dict[str, Any]
    random_weights: bool


def load_checkpoint(spec: EncoderSpec, device: str, kind: Literal["speech", "text"]) -> Checkpoint:
    """Load an encoder for inference in float32.

    Raises:
        EncoderError: not on this computer and the hub cannot be reached (the message says what to download and where
            to put it), weights missing or of another shape, not of this kind, or no known normalisation.
    """
    if spec.name == RANDOM_TINY and kind == "speech":
        model, feature_extractor = _random_tiny()
        note = "small random weights, seed 0; its features mean nothing"
        source = {"name": RANDOM_TINY, "note": note, "parameters": _parameters(model)}
        return Checkpoint(_frozen(model, device), feature_extractor, source, True)
    folder = local_folder(spec.name)
    if folder and spec.revision:
        raise EncoderError(f"{folder} is a local folder, which has no revisions; leave --revision out")
    place: dict[str, Any] = {"pretrained_model_name_or_path": str(folder or spec.name), "local_files_only": True}
    if not folder:
        place["revision"] = spec.revision or "main"
    try:
        model, preprocessor = _load(spec, place, kind)
    except EncoderError:
        # What is not whole on this computer is fetched, if there is a hub to ask.
        if folder or not _hub_answers():
            raise
        model, preprocessor = _load(spec, {**place, "local_files_only": False}, kind)
    source = {
        "name": spec.name,
        "revision": spec.revision,
        "commit": getattr(model.config, "_commit_hash", None),
        "class": type(model).__name__,
        "parameters": _parameters(model),
    }
    # A checkpoint made for timing says so in its config.json, and its features stay marked for ever.
    random_weights = bool(getattr(model.config, "random_weights", False))
    return Checkpoint(_frozen(model, device), preprocessor, source, random_weights)


def weights_sha256(state: dict[str, torch.Tensor]) -> str:
    """Digest of a model's weights that does not depend on how a library spells their names or in which file they came.

    SHA-256 over the sorted SHA-256 of each tensor's shape, type and bytes. Whatever training gives is told apart; the
    same tensors in exchanged places are not.
    """
    parts = []
    for name, tensor in state.items():
        # What a checkpoint may lack is filled with random numbers, and never used for inference.
        if name.endswith(MAY_BE_MISSING):
            continue
        array = np.ascontiguousarray(tensor.detach().cpu().numpy())
        parts.append(hashlib.sha256(f"{array.shape}{array.dtype}".encode() + array.tobytes()).digest())
    return hashlib.sha256(b"".join(sorted(parts))).hexdigest()


def _parameters(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


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


def _load(spec: EncoderSpec, place: dict[str, Any], kind: str) -> tuple[Any, Any]:
    """The model (of a sequence-to-sequence one such as Whisper, its encoder) and its feature extractor or tokenizer."""
    from transformers import AutoFeatureExtractor, AutoModel, AutoTokenizer

    reader = AutoFeatureExtractor if kind == "speech" else AutoTokenizer
    try:
        # A download of hundreds of megabytes keeps the hub's own progress bar.
        with quiet_transformers() if place["local_files_only"] else contextlib.nullcontext():
            preprocessor = reader.from_pretrained(**place, trust_remote_code=False)
            model, info = AutoModel.from_pretrained(
                **place, trust_remote_code=False, weights_only=True, output_loading_info=True, dtype=torch.float32
            )
    except Exception as error:  # A damaged checkpoint can make its readers raise anything.
        raise EncoderError(_load_failure(spec, place, error, kind)) from error
    part = "encoder." if getattr(model.config, "is_encoder_decoder", False) else ""
    wrong = {str(key) for key in (*info["missing_keys"], *(item[0] for item in info.get("mismatched_keys", ())))}
    # The pooler serves the pre-training task; the decoder is not kept.
    wrong = {key for key in wrong if key.startswith(part) and not key.startswith("pooler.")}
    wrong = {key for key in wrong if not key.endswith(MAY_BE_MISSING)}
    if wrong:
        raise EncoderError(
            f"encoder {spec.name!r}: its checkpoint lacks {len(wrong)} weights of {type(model).__name__}, the first "
            f"being {min(wrong)}; they would be random. Name a checkpoint that holds the whole encoder"
        )
    model = model.get_encoder() if part else model
    (_check_speech if kind == "speech" else _check_text)(spec, model, preprocessor)
    return model, preprocessor


def _check_speech(spec: EncoderSpec, model: Any, feature_extractor: Any) -> None:
    inputs = getattr(feature_extractor, "model_input_names", ["input_values"])[0]
    waveform = inputs == "input_values" and hasattr(model, "_get_feat_extract_output_lengths")
    if not waveform and model.config.model_type != "whisper":
        raise EncoderError(
            f"encoder {spec.name!r} is a {model.config.model_type}; expected a model that takes the waveform, "
            "such as HuBERT, wav2vec 2.0 or WavLM, or Whisper"
        )
    if getattr(feature_extractor, "sampling_rate", SAMPLE_RATE) != SAMPLE_RATE:
        raise EncoderError(
            f"encoder {spec.name!r} expects {feature_extractor.sampling_rate} Hz; clips are cut at {SAMPLE_RATE} Hz"
        )


def _check_text(spec: EncoderSpec, model: Any, tokenizer: Any) -> None:
    if "input_ids" not in getattr(tokenizer, "model_input_names", ()) or model.get_input_embeddings() is None:
        raise EncoderError(f"text encoder {spec.name!r} is a {model.config.model_type}; expected a model such as BERT")
    # Where its files are missing, transformers makes a tokenizer that knows nothing but special tokens.
    if len(tokenizer.get_vocab()) <= len(tokenizer.all_special_tokens):
        raise EncoderError(
            f"text encoder {spec.name!r} has no vocabulary; expected the tokenizer's files beside its weights, "
            "as save_pretrained writes them: tokenizer_config.json and tokenizer.json or vocab.txt"
        )


def _load_failure(spec: EncoderSpec, place: dict[str, Any], error: Exception, kind: str) -> str:
    folder = local_folder(spec.name)
    if isinstance(error, pickle.UnpicklingError):
        return f"encoder {spec.name!r}: its .bin holds more than weights and was not read; convert it to safetensors"
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if folder:
        needed = ["config.json", "preprocessor_config.json" if kind == "speech" else "tokenizer_config.json"]
        absent = [name for name in needed if not (folder / name).is_file()]
        if absent and kind == "speech":
            return (
                f"encoder {folder}: {' and '.join(absent)} is missing; expected a folder as save_pretrained writes it: "
                "config.json, preprocessor_config.json (how the waveform is normalised) and model.safetensors. "
                "transformers' Wav2Vec2FeatureExtractor(do_normalize=…).save_pretrained(folder) writes the second"
            )
        if absent:
            return (
                f"text encoder {folder}: {' and '.join(absent)} is missing; expected a folder as save_pretrained "
                "writes it: config.json, model.safetensors and the tokenizer's files"
            )
        return f"encoder {folder}: could not be loaded ({first})"
    if place["local_files_only"]:
        revision = f" --revision {spec.revision}" if spec.revision else ""
        option = "--encoder" if kind == "speech" else "--text-encoder"
        return (
            f"encoder {spec.name!r} is neither a folder nor in this computer's Hugging Face cache, and the hub cannot "
            f"be reached. Where there is a network, run\n    hf download {spec.name}{revision} "
            f"--local-dir {spec.stem}\ncopy that folder here, and name it: {option} {spec.stem}"
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
