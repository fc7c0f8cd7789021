"""A frozen speech encoder: clips of one length in, hidden layers out, in exact float32 unless asked otherwise.

Two families differ in what they take. HuBERT, wav2vec 2.0, WavLM, data2vec-audio and UniSpeech-SAT take the waveform.
Whisper takes log-mel features of 30 s: a clip is padded to that with zeros, and the frames of the clip are kept.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mfhca_cache.errors import EncoderError
from mfhca_cache.extraction.batch_size import Portions, free_memory, is_out_of_memory
from mfhca_cache.extraction.checkpoint import Checkpoint, load_checkpoint, weights_sha256
from mfhca_cache.extraction.runtimes import Runtime, TorchRuntime, UnsuitableError, is_small, make_runtime
from mfhca_cache.spec import SAMPLE_RATE, EncoderSpec, Layers, Precision

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
        precision: of the products.
        portions: what of a batch memory holds; see `mfhca_cache.extraction.batch_size.Portions`.
    """

    def __init__(self, checkpoint: Checkpoint, precision: Precision = "fp32") -> None:
        self._model = checkpoint.model
        self._runtime: Runtime | None = None
        self.precision = precision
        self.portions = Portions(cleared=self._clear)
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

    @property
    def device(self) -> str:
        """``cpu`` or ``cuda``."""
        return self._device.type

    @property
    def small(self) -> bool:
        """Whether choosing how to compute would cost more than it could save."""
        return is_small(self._model)

    @property
    def runtime(self) -> Runtime:
        """What runs the network: plain PyTorch until `use` says otherwise."""
        if self._runtime is None:
            self._runtime = TorchRuntime(self._model, self.precision)
        return self._runtime

    def use(self, runtime: Runtime) -> None:
        """Compute with this runtime, which must be of this encoder's model; see `make`."""
        self._runtime = runtime

    def make(self, name: str, precision: Precision | None = None, threads: int | None = None) -> Runtime:
        """A runtime of this encoder's model by name, in its precision or another.

        Raises:
            UnsuitableError: see `mfhca_cache.extraction.runtimes.make_runtime`.
        """
        return make_runtime(name, self._model, precision or self.precision, threads)

    def encode(self, clips: np.ndarray, layers: Layers = "last") -> torch.Tensor:
        """Hidden layers of clips of one length, each normalised on its own, without an attention mask.

        Where memory ends, the batch is done again in halves, and later ones in portions that fit.

        Args:
            clips: float32 (B, samples) at 16 kHz.
            layers: see `mfhca_cache.spec.EncoderSpec`.

        Returns:
            float32 (B, frames, width) on the CPU, or (B, layers, frames, width) for several layers.

        Raises:
            EncoderError: memory does not hold one clip, there is no such layer, or the runtime cannot compute it here.
        """
        numbers = self.layer_numbers(layers)
        try:
            return self.portions.run(lambda part: self.compute(self.runtime, part, numbers), clips)
        except UnsuitableError as error:
            raise EncoderError(
                f"runtime {self.runtime.name} cannot compute {self.source['name']!r} here: {error}. Go on where its "
                "feature was begun, or begin another cache with --cache DIR"
            ) from error

    def encode_many(
        self, batches: Iterable[np.ndarray], layers: Layers = "last", dtype: torch.dtype = torch.float32
    ) -> Iterator[torch.Tensor]:
        """`encode` of one batch after another, in order; on a GPU, results come back while the next batch computes.

        There a result is yielded once the batch behind it has been started, so whoever writes it keeps no GPU waiting.

        Args:
            batches: as `encode` takes them.
            layers: see `mfhca_cache.spec.EncoderSpec`.
            dtype: of the results; converted on the device. What float16 cannot hold becomes infinite.
        """
        numbers = self.layer_numbers(layers)
        if self.device == "cpu":
            for clips in batches:
                yield self.encode(clips, layers).to(dtype)
            return
        copying = torch.cuda.Stream(self._device)
        ahead: _OnItsWay | None = None
        for clips in batches:
            started = self._start(clips, numbers, dtype, copying) if self._fits(clips) else None
            if ahead is not None:
                yield ahead.result()
            ahead = None
            if started is None:
                # Memory ended: what was on its way has arrived, and this batch is done in portions.
                yield self.encode(clips, layers).to(dtype)
            else:
                ahead = started
        if ahead is not None:
            yield ahead.result()

    def _clear(self) -> None:
        self.runtime.forget()
        free_memory()

    def _fits(self, clips: np.ndarray) -> bool:
        return self.portions.most is None or len(clips) <= self.portions.most

    def _start(
        self, clips: np.ndarray, numbers: Sequence[int], dtype: torch.dtype, copying: torch.cuda.Stream
    ) -> _OnItsWay | None:
        """Begin a batch and its way back on a stream of its own; None where memory ended."""
        try:
            with torch.inference_mode(), exact_float32():
                # PyTorch keeps pinned buffers and gives one out again once the copies from it are done.
                values = self._values(clips).pin_memory()
                hidden = self._shaped(self.runtime.hidden(values, numbers), clips.shape[1]).to(dtype).contiguous()
                host = torch.empty(hidden.shape, dtype=dtype, pin_memory=True)
                copying.wait_stream(torch.cuda.current_stream(self._device))
                with torch.cuda.stream(copying):
                    host.copy_(hidden, non_blocking=True)
                    hidden.record_stream(copying)
                    arrived = torch.cuda.Event()
                    arrived.record(copying)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            return None
        return _OnItsWay(host, arrived)

    def compute(self, runtime: Runtime, clips: np.ndarray, numbers: Sequence[int]) -> torch.Tensor:
        """One call of a runtime on a batch, whatever memory says; see `encode`, which most callers want.

        Raises:
            UnsuitableError: the runtime cannot compute this encoder.
        """
        with torch.inference_mode(), exact_float32():
            hidden = runtime.hidden(self._values(clips), numbers)
            return self._shaped(hidden, clips.shape[1]).float().cpu()

    def _shaped(self, hidden: torch.Tensor, samples: int) -> torch.Tensor:
        """(B, layers, frames, width) → the clip's own frames, without the axis of layers where there is one alone."""
        hidden = self._cut(hidden, samples)
        return hidden if hidden.shape[1] > 1 else hidden[:, 0]

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

    def _values(self, clips: np.ndarray) -> torch.Tensor:
        """What the model takes: float32 (B, samples), standardised where the checkpoint says so."""
        inputs = self._feature_extractor(list(clips), sampling_rate=SAMPLE_RATE, return_tensors="pt")
        values: torch.Tensor = inputs["input_values"].to(torch.float32)
        return values

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

    def _values(self, clips: np.ndarray) -> torch.Tensor:
        """What the model takes: float32 (B, bands, frames), the log-mel features of 30 s."""
        window = int(self._feature_extractor.n_samples)
        if clips.shape[1] > window:
            raise EncoderError(
                f"encoder {self.source['name']!r} hears {window / SAMPLE_RATE:.0f} s; "
                f"got clips of {clips.shape[1] / SAMPLE_RATE:.0f} s"
            )
        inputs = self._feature_extractor(list(clips), sampling_rate=SAMPLE_RATE, return_tensors="pt")
        values: torch.Tensor = inputs["input_features"].to(torch.float32)
        return values

    def _cut(self, hidden: torch.Tensor, samples: int) -> torch.Tensor:
        return hidden[:, :, : self.frames(samples)]


@dataclass(frozen=True)
class _OnItsWay:
    """A batch's results that are being copied into pinned memory."""

    host: torch.Tensor
    arrived: torch.cuda.Event

    def result(self) -> torch.Tensor:
        """The results, once they are there."""
        self.arrived.synchronize()
        return self.host


def load_encoder(spec: EncoderSpec, device: str = "cpu") -> Encoder:
    """Load a speech encoder for inference in the precision that was asked for; its weights are read in float32.

    Raises:
        EncoderError: see `mfhca_cache.extraction.checkpoint.load_checkpoint`; or it has no such layers.
    """
    checkpoint = load_checkpoint(spec, device, "speech")
    whisper = checkpoint.model.config.model_type == "whisper"
    encoder = (WhisperEncoder if whisper else Encoder)(checkpoint, spec.precision)
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
