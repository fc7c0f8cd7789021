"""A frozen speech encoder: clips of one length in, hidden layers out, in exact float32.

Two families differ in what they take. HuBERT, wav2vec 2.0, WavLM, data2vec-audio and UniSpeech-SAT take the waveform.
Whisper takes log-mel features of 30 s: a clip is padded to that with zeros, and the frames of the clip are kept.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from mfhca_cache.errors import EncoderError
from mfhca_cache.extraction.checkpoint import Checkpoint, load_checkpoint, weights_sha256
from mfhca_cache.spec import SAMPLE_RATE, EncoderSpec, Layers

#: What of a configuration changes the numbers while the weights stay the same.
_ARCHITECTURE = (
    "model_type", "num_attention_heads", "hidden_act", "layer_norm_eps", "do_stable_layer_norm", "feat_extract_norm",
    "feat_extract_activation", "conv_stride", "conv_kernel", "num_conv_pos_embedding_groups", "conv_pos_kernel_size",
    "num_buckets", "max_bucket_distance", "position_embeddings_type", "rotary_embedding_base", "scale_embedding",
    "encoder_attention_heads", "activation_function", "add_adapter",
)  # fmt: skip
_PREPROCESSING = ("do_normalize", "feature_size", "n_fft", "hop_length", "chunk_length", "dither", "padding_value")
#: Relative error above which a clip's features depend on its neighbours in the batch.
BATCH_TOLERANCE = 1e-4


class Encoder:
    """A frozen encoder that takes the waveform; make one with `load_encoder`.

    Attributes:
        width: size of a hidden layer.
        blocks: number of transformer blocks, N.
        weights_sha256: of the weights, whatever the file that they came in.
        architecture: what of the configuration decides the numbers beside the weights.
        preprocessing: how the checkpoint's feature extractor treats each clip, such as ``do_normalize``.
        source: name, revision asked for, commit that the hub resolved, class.
        random_weights: the weights were never trained.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._model = checkpoint.model
        self._feature_extractor = checkpoint.preprocessor
        self._checked = False
        config = self._model.config
        self.width = int(config.hidden_size)
        self.blocks = int(config.num_hidden_layers)
        self.weights_sha256 = weights_sha256(self._model.state_dict())
        self.architecture = architecture(config, _ARCHITECTURE)
        self.preprocessing = architecture(self._feature_extractor, _PREPROCESSING)
        self.source = checkpoint.source
        self.random_weights = checkpoint.random_weights

    @property
    def normalise(self) -> bool:
        """Whether the checkpoint's feature extractor standardises each clip."""
        return bool(self.preprocessing.get("do_normalize", False))

    def frames(self, samples: int) -> int:
        """Frames of a hidden layer for so many samples at 16 kHz: 149 for 48,000."""
        return int(self._model._get_feat_extract_output_lengths(torch.tensor(samples)))

    def layer_numbers(self, layers: Layers) -> tuple[int, ...]:
        """The numbers that ``last``, ``all`` or numbers mean here; 0 is the first block's input, N the final layer.

        Raises:
            EncoderError: this encoder has no such layer.
        """
        if layers == "last":
            return (self.blocks,)
        numbers = tuple(range(self.blocks + 1)) if layers == "all" else tuple(int(number) for number in layers)
        if max(numbers) > self.blocks:
            raise EncoderError(
                f"encoder {self.source['name']!r} has the layers 0 to {self.blocks}; got --layers "
                + ",".join(map(str, numbers))
            )
        return numbers

    def encode(self, clips: np.ndarray, layers: Layers = "last") -> torch.Tensor:
        """Hidden layers of clips of one length, each normalised on its own, without an attention mask.

        Args:
            clips: float32 (B, samples) at 16 kHz.
            layers: see `mfhca_cache.spec.EncoderSpec`.

        Returns:
            float32 (B, frames, width) on the CPU, or (B, layers, frames, width) for several layers.
        """
        numbers = self.layer_numbers(layers)
        with torch.inference_mode(), exact_float32():
            output = self._forward(clips, output_hidden_states=numbers != (self.blocks,))
            final = output.last_hidden_state
            # Where a final layer norm follows the last block, hidden_states may end before it.
            chosen = [final if n == self.blocks else output.hidden_states[n] for n in numbers]
            hidden = self._cut(torch.stack(chosen, dim=1), clips.shape[1]).float().cpu()
        return hidden if len(numbers) > 1 else hidden[:, 0]

    def check_batching(self, clips: np.ndarray) -> None:
        """Check, once, that clips alone give what they give in a batch; a wrong encoder would be cached for years.

        Args:
            clips: float32 (B, samples), the first batch that this encoder sees.

        Raises:
            EncoderError: they do not.
        """
        if self._checked or len(clips) < 2:
            return
        together = self.encode(clips)
        if not bool(together.isfinite().all()):
            return  # Damaged weights, which whoever stores the features says more clearly.
        for row in sorted({0, len(clips) // 2, len(clips) - 1}):
            alone = self.encode(clips[row : row + 1])[0]
            error = float((together[row] - alone).norm() / alone.norm().clamp(min=1e-30))
            if not error <= BATCH_TOLERANCE:
                raise EncoderError(
                    f"encoder {self.source['name']!r}: a clip in a batch differs from the same clip alone by "
                    f"{error:.2g} (relative; expected at most {BATCH_TOLERANCE:g}), so its features would depend on "
                    "their neighbours. Use --batch 1 and another --cache, or report the encoder"
                )
        self._checked = True

    def _forward(self, clips: np.ndarray, output_hidden_states: bool) -> Any:
        inputs = self._feature_extractor(list(clips), sampling_rate=SAMPLE_RATE, return_tensors="pt")
        values = inputs["input_values"].to(self._device, torch.float32)
        return self._model(values, output_hidden_states=output_hidden_states)

    def _cut(self, hidden: torch.Tensor, samples: int) -> torch.Tensor:
        """The frames of the clip: all of them."""
        return hidden

    @property
    def _device(self) -> torch.device:
        device: torch.device = next(self._model.parameters()).device
        return device


class WhisperEncoder(Encoder):
    """Whisper's encoder: its 30-second window holds one clip, whose own frames are kept (150 of 3 s)."""

    def frames(self, samples: int) -> int:
        """Frames of so many samples at 16 kHz, one every 20 ms: 150 for 48,000."""
        hop = int(self._feature_extractor.hop_length)
        return int(self._model._get_feat_extract_output_lengths(torch.tensor(-(-samples // hop))))

    def _forward(self, clips: np.ndarray, output_hidden_states: bool) -> Any:
        window = int(self._feature_extractor.n_samples)
        if clips.shape[1] > window:
            raise EncoderError(
                f"encoder {self.source['name']!r} hears {window / SAMPLE_RATE:.0f} s; "
                f"got clips of {clips.shape[1] / SAMPLE_RATE:.0f} s"
            )
        inputs = self._feature_extractor(list(clips), sampling_rate=SAMPLE_RATE, return_tensors="pt")
        values = inputs["input_features"].to(self._device, torch.float32)
        return self._model(values, output_hidden_states=output_hidden_states)

    def _cut(self, hidden: torch.Tensor, samples: int) -> torch.Tensor:
        return hidden[:, :, : self.frames(samples)]


def load_encoder(spec: EncoderSpec, device: str = "cpu") -> Encoder:
    """Load a speech encoder for inference in float32.

    Raises:
        EncoderError: see `mfhca_cache.extraction.checkpoint.load_checkpoint`; or it has no such layers.
    """
    checkpoint = load_checkpoint(spec, device, "speech")
    whisper = checkpoint.model.config.model_type == "whisper"
    encoder = WhisperEncoder(checkpoint) if whisper else Encoder(checkpoint)
    encoder.layer_numbers(spec.layers)
    return encoder


def architecture(config: Any, names: Sequence[str]) -> dict[str, Any]:
    """The named values of a configuration that it has, ready for JSON."""
    values = config.to_dict()
    return {key: values[key] for key in names if values.get(key) is not None}


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """Multiply in full float32: cuDNN and cuBLAS would else use TF32, with 10 bits of mantissa."""
    matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn
