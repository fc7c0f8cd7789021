"""A frozen text encoder over the manifest's transcripts: one run of token vectors an utterance, of any length."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mfhca_cache.errors import EncoderError
from mfhca_cache.extraction.checkpoint import Checkpoint, load_checkpoint, weights_sha256
from mfhca_cache.extraction.encoder import architecture, exact_float32
from mfhca_cache.manifest import Rejected
from mfhca_cache.spec import EncoderSpec, fingerprint
from mfhca_cache.storage.layout import Plan

_ARCHITECTURE = (
    "model_type", "num_attention_heads", "n_heads", "hidden_act", "activation", "layer_norm_eps",
    "position_embedding_type", "pad_token_id", "position_buckets", "relative_attention", "pos_att_type",
)  # fmt: skip


class TextEncoder:
    """A frozen text encoder on a device; make one with `load_text_encoder`.

    Attributes:
        width: size of the final hidden layer.
        longest: tokens that it takes, special ones among them.
        weights_sha256, tokenizer_sha256: of the weights and of everything that turns text into tokens.
        architecture, source, random_weights: as of `mfhca_cache.extraction.encoder.Encoder`.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._model = checkpoint.model
        self._tokenizer = checkpoint.preprocessor
        config = self._model.config
        self.width = int(config.hidden_size)
        self.longest = _longest(self._model, self._tokenizer)
        self.weights_sha256 = weights_sha256(
            {name: value for name, value in self._model.state_dict().items() if not name.startswith("pooler.")}
        )
        self.tokenizer_sha256 = _tokenizer_sha256(self._tokenizer)
        self.architecture = architecture(config, _ARCHITECTURE)
        self.source = checkpoint.source
        self.random_weights = checkpoint.random_weights

    def encode(self, text: str) -> torch.Tensor:
        """Final hidden layer of a text, alone, special tokens among it: float32 (tokens, width) on the CPU.

        Raises:
            EncoderError: more tokens than the encoder takes.
        """
        inputs = self._tokenizer(text, return_tensors="pt")
        tokens = inputs["input_ids"].shape[1]
        if tokens > self.longest:
            raise EncoderError(f"got {tokens} tokens; {self.source['name']} takes {self.longest}")
        device = next(self._model.parameters()).device
        with torch.inference_mode(), exact_float32():
            hidden = self._model(**{name: value.to(device) for name, value in inputs.items()}).last_hidden_state
        result: torch.Tensor = hidden[0].float().cpu()
        return result


@dataclass(frozen=True)
class EncodedTexts:
    """The transcripts of a run of utterances as token vectors.

    Attributes:
        numbers: (N,) int64, rows of the plan's utterances.
        data: float32 (N, longest, width), zeros after each text's end.
        valid: (N,) int64, tokens.
        rejected: utterances without words, or with too many.
    """

    numbers: np.ndarray
    data: np.ndarray
    valid: np.ndarray
    rejected: tuple[Rejected, ...]


def load_text_encoder(spec: EncoderSpec, device: str = "cpu") -> TextEncoder:
    """Load a text encoder for inference in float32.

    Raises:
        EncoderError: see `mfhca_cache.extraction.checkpoint.load_checkpoint`.
    """
    return TextEncoder(load_checkpoint(spec, device, "text"))


def encode_texts(plan: Plan, encoder: TextEncoder, first: int, stop: int) -> EncodedTexts:
    """Encode the transcripts of the plan's utterances ``first`` to ``stop``, each alone, so that none is padded."""
    numbers, found, rejected = [], [], []
    for number in range(first, stop):
        row = plan.utterances.iloc[number]
        if not row["text"].strip():
            rejected.append(Rejected(row["utterance_id"], "no-text: the manifest has no transcript of it"))
            continue
        try:
            found.append(encoder.encode(row["text"]).numpy())
        except EncoderError as error:
            rejected.append(Rejected(row["utterance_id"], f"too-long: {error}"))
            continue
        numbers.append(number)
    valid = np.array([len(tokens) for tokens in found], dtype=np.int64)
    data = np.zeros((len(found), int(valid.max(initial=0)), encoder.width), dtype=np.float32)
    for place, tokens in enumerate(found):
        data[place, : len(tokens)] = tokens
    return EncodedTexts(np.array(numbers, dtype=np.int64), data, valid, tuple(rejected))


def _longest(model: torch.nn.Module, tokenizer: Any) -> int:
    """Tokens that a model has positions for. A tokenizer without a limit states an absurd one."""
    positions = int(getattr(model.config, "max_position_embeddings", 0))
    if not positions:
        return int(tokenizer.model_max_length)
    # RoBERTa's first position lies behind the padding's.
    used = [
        module.padding_idx + 1
        for name, module in model.named_modules()
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None
    ]
    return min(int(tokenizer.model_max_length), positions - max(used, default=0))


def _tokenizer_sha256(tokenizer: object) -> str:
    """Of everything that turns text into tokens: the fast tokenizer's own description, or the vocabulary."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return hashlib.sha256(backend.to_str().encode()).hexdigest()
    return fingerprint([type(tokenizer).__name__, tokenizer.get_vocab(), tokenizer.special_tokens_map])  # type: ignore[attr-defined]
