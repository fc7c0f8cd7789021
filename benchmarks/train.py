"""Stage two against the usual ways: one fold-epoch, folds side by side, and ten folds with the encoder in the loop.

    python benchmarks/train.py                                          # small, on the CPU: two or three minutes
    python benchmarks/train.py --clips 11000 --epochs 50 --device cuda  # IEMOCAP's size

Each way has a process of its own, because what makes ours fast begins with how a process is started. Ways go in turn,
all of them warm; loading and starting are not in the figures, but for ten folds on a GPU, which are trained as the
command trains them.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from measure import Measured, Result, finish, parser, side_by_side

from mfhca_cache.allocator import keep_freed_memory
from mfhca_cache.device import usable_cores

#: Of ten folds of IEMOCAP's size: eight speakers train, one chooses the epoch, one is tested.
_TRAIN, _CHOOSE, _FOLDS = 0.8, 0.1, 10
_BATCH = 32


def eager(connection: Connection, file: str, device: str, precision: str, workers: int, threads: int) -> None:
    """A map-style Dataset over h5py, a DataLoader, a plain loop: nine tenths train, one tenth is for validation."""
    import h5py
    import torch
    from torch.nn import functional as F
    from torch.utils.data import DataLoader, Dataset, Subset

    from mfhca_cache.models import build_model

    class Clips(Dataset[tuple[torch.Tensor, torch.Tensor, int]]):
        def __init__(self) -> None:
            self.file: h5py.File | None = None
            with h5py.File(file) as opened:
                self.labels = opened["label"][:]

        def __len__(self) -> int:
            return len(self.labels)

        def __getitem__(self, clip: int) -> tuple[torch.Tensor, torch.Tensor, int]:
            self.file = self.file or h5py.File(file)
            spectrogram, encoder = (self.file[name][clip] for name in ("spectrogram", "hubert-base"))
            return torch.from_numpy(spectrogram).float(), torch.from_numpy(encoder).float(), int(self.labels[clip])

    torch.set_num_threads(threads)
    _full_float32()
    torch.manual_seed(0)
    clips = Clips()
    cut = _cut(len(clips))
    # As Linux starts them where nothing else was chosen, and kept from epoch to epoch, which is kind to them.
    kind: dict[str, Any] = {"multiprocessing_context": "fork", "persistent_workers": True} if workers else {}
    train = DataLoader(Subset(clips, range(cut)), _BATCH, shuffle=True, num_workers=workers, **kind)
    validation = DataLoader(Subset(clips, range(cut, len(clips))), _BATCH, num_workers=workers, **kind)
    model = build_model("mfhca").to(device)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-5)

    def loss_of(batch: list[torch.Tensor]) -> torch.Tensor:
        spectrogram, encoder, labels = (part.to(device) for part in batch)
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            return F.cross_entropy(model((spectrogram + 60) / 12, encoder).float(), labels)

    def epoch() -> None:
        model.train()
        for batch in train:
            optimiser.zero_grad()
            loss = loss_of(batch)
            loss.backward()
            optimiser.step()
            loss.item()
        model.eval()
        with torch.no_grad():
            for batch in validation:
                loss_of(batch).item()

    _serve(connection, epoch)


def ours(connection: Connection, folder: str, device: str, precision: str, threads: int) -> None:
    """A fold of the cache, an epoch at a time: the loop of `mfhca train`."""
    keep_freed_memory()
    from mfhca_cache.folds import Fold
    from mfhca_cache.progress import Progress
    from mfhca_cache.storage.cache import open_cache
    from mfhca_cache.training.interleave import RandomState
    from mfhca_cache.training.job import load_job_data, prepare
    from mfhca_cache.training.options import TrainOptions
    from mfhca_cache.training.trainer import fold_steps, repeatable

    options = TrainOptions(precision=precision, threads=threads, epochs=10_000)
    object.__setattr__(options.recipe, "patience", 10_000)
    job = prepare(open_cache(folder), options, device)
    ids = tuple(job.table["utterance_id"])
    cut = _cut(len(ids))
    fold = Fold(1, "all", "strict", ids[:cut], ids[cut:], ids[cut:], (), ())
    done: list[Progress] = []
    steps = fold_steps(job, fold, load_job_data(job, [fold]), done.append)

    def epoch() -> None:
        before = len(done)
        while len(done) == before:
            if not next(steps):
                time.sleep(5e-5)

    with repeatable(job.threads, fill=False), RandomState(0, device).in_use():
        _serve(connection, epoch)


def fine_tuned(connection: Connection, device: str, precision: str, batch: int, threads: int) -> None:
    """The released way: MFHCA as released with HuBERT-base inside, all of it trained, on audio and images.

    ``train`` and ``evaluate`` each take one batch; ``extract`` is the encoder's forward pass alone.
    """
    import torch
    from torch.nn import functional as F
    from transformers import HubertConfig, HubertModel

    from mfhca_cache.models import build_model, released

    torch.set_num_threads(threads)
    _full_float32()
    torch.manual_seed(0)
    encoder = HubertModel(HubertConfig()).to(device)
    model = build_model("mfhca", settings=released()).to(device)
    optimiser = torch.optim.AdamW([*encoder.parameters(), *model.parameters()], lr=1e-5)
    audio, image = torch.randn(batch, 48_000, device=device), torch.randn(batch, 384, 256, device=device)
    labels = torch.arange(batch, device=device) % 4

    def loss_of() -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            return F.cross_entropy(model(image, encoder(audio).last_hidden_state).float(), labels)

    def work(what: str) -> None:
        training = what == "train"
        encoder.train(training), model.train(training)
        with torch.set_grad_enabled(training):
            if what == "extract":
                encoder(audio)
            elif training:
                optimiser.zero_grad()
                loss_of().backward()
                optimiser.step()
            else:
                loss_of()
        if device == "cuda":
            torch.cuda.synchronize()

    connection.send("ready")
    while True:
        connection.send(work(connection.recv()))


def _serve(connection: Connection, epoch: Callable[[], None]) -> None:
    connection.send("ready")
    while True:
        connection.recv()
        connection.send(epoch())


def _cut(clips: int) -> int:
    """Clips that train; the rest, a ninth of them, is for validation, as a fold has it."""
    return round(clips * _TRAIN / (_TRAIN + _CHOOSE))


def _full_float32() -> None:
    import torch

    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


@contextmanager
def way(target: Callable[..., None], *args: Any) -> Iterator[Callable[..., None]]:
    """A process that does a way's work when it is told to: ``begin()``, then ``end()`` waits."""
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    # Not a daemon: a DataLoader starts processes of its own.
    process = context.Process(target=_quietly, args=(target, theirs, *args))
    process.start()
    theirs.close()

    def work(*words: str) -> None:
        mine.send(words[0] if words else "go")
        if "begin" not in words:
            mine.recv()

    work.end = mine.recv  # type: ignore[attr-defined]
    try:
        mine.recv()
        yield work
    finally:
        process.terminate()
        process.join()


def _quietly(target: Callable[..., None], *args: Any) -> None:
    import warnings

    warnings.filterwarnings("ignore")
    target(*args)


def fold_epochs(folder: Path, file: Path, clips: int, device: str, rounds: int, threads: int) -> list[Result]:
    """One fold-epoch, in clips a second, once for each precision."""
    results = []
    for precision in ("fp32", "bf16"):
        title = f"One fold-epoch, {device}, {precision}: {clips:,} clips, a ninth of them for validation"
        names = ("DataLoader over h5py, no workers, eager loop", "the same, 2 workers", "ours")
        with (
            way(eager, str(file), device, precision, 0, threads) as none,
            way(eager, str(file), device, precision, 2, threads) as two,
            way(ours, str(folder), device, precision, threads) as fast,
        ):
            rates = side_by_side(dict(zip(names, (none, two, fast), strict=True)), clips, rounds)
        ways = tuple(Measured(name, rates[name]) for name in names)
        results.append(Result(title, "clips/s", ways, "2 × on a CPU, 5 × on CUDA"))
    return results


def jobs(folder: Path, clips: int, rounds: int) -> Result:
    """Two folds at once, a core each, against one after the other on both; fold-epochs a minute."""
    title = f"Two fold-epochs on 2 cores, fp32: {clips:,} clips each"
    with (
        way(ours, str(folder), "cpu", "fp32", 2) as both_cores,
        way(ours, str(folder), "cpu", "fp32", 1) as one,
        way(ours, str(folder), "cpu", "fp32", 1) as other,
    ):

        def in_turn() -> None:
            both_cores()
            both_cores()

        def at_once() -> None:
            for work in (one, other):
                work("go", "begin")
            for work in (one, other):
                work.end()  # type: ignore[attr-defined]

        ways = {"one after the other, 2 threads": in_turn, "--jobs 2, a thread each": at_once}
        rates = side_by_side(ways, 2 * 60, rounds)
    return Result(title, "fold-epochs/min", tuple(Measured(name, found) for name, found in rates.items()), "1.15 ×")


def ten_folds(
    folder: Path, clips: int, epochs: int, device: str, rounds: int, batch: int, threads: int, trained: bool
) -> list[Result]:
    """Ten folds with the encoder in the loop, extrapolated from its steps; and ours, the extraction counted in."""
    results = []
    for precision in ("fp32", "bf16"):
        with (
            way(fine_tuned, device, precision, batch, threads) as released,
            way(ours, str(folder), device, precision, threads) as fast,
        ):
            rates = side_by_side(
                {"train": lambda: released("train"), "evaluate": lambda: released("evaluate"),
                 "extract": lambda: released("extract")}, batch, rounds,
            )  # fmt: skip
            small = side_by_side({"ours": fast}, _clips(folder), rounds)["ours"]
        train, evaluate, extract = rates["train"], rates["evaluate"], rates["extract"]
        # The released code chooses the epoch on the test speaker: nine speakers train, one is evaluated.
        theirs = [
            86_400 / (_FOLDS * epochs * clips * ((1 - _CHOOSE) / t + _CHOOSE / e))
            for t, e in zip(train, evaluate, strict=True)
        ]
        extraction = [clips / rate for rate in extract]
        training = [_FOLDS * epochs * clips * (_TRAIN + _CHOOSE) / rate for rate in small]
        note = f"{_clock(training)} of training, extrapolated, and {_clock(extraction)} of plain extraction"
        if trained:
            training = [_train_all(folder, device, precision, epochs) * clips / _clips(folder)] * len(extraction)
            note = f"{_clock(training)} of training, all of it measured, and {_clock(extraction)} of plain extraction"
        mine = [86_400 / (a + b) for a, b in zip(extraction, training, strict=True)]
        title = f"Ten folds × {epochs} epochs of {clips:,} clips, {device}, {precision}"
        both = (
            Measured(
                "HuBERT-base fine-tuned in the loop", tuple(theirs), note=f"{_clock([86_400 / r for r in theirs])}"
            ),
            Measured("ours, with the extraction", tuple(mine), note=note),
        )
        results.append(Result(title, "ten folds/day", both, "30 × on CUDA, under 3 min of training"))
    return results


def _train_all(folder: Path, device: str, precision: str, epochs: int) -> float:
    """Seconds of `cross_validate`, loading included, brought to so many epochs a fold where it stopped before."""
    from mfhca_cache.storage.cache import open_cache
    from mfhca_cache.training.crossval import cross_validate
    from mfhca_cache.training.options import TrainOptions

    before = time.perf_counter()
    options = TrainOptions(precision=precision, epochs=epochs)
    results = cross_validate(open_cache(folder), options, device=device, jobs=None)
    seconds = time.perf_counter() - before
    return seconds * epochs * len(results) / sum(result.record["epochs"] for result in results)


def _clips(folder: Path) -> int:
    from mfhca_cache.storage.cache import open_cache

    return open_cache(folder).plan.clips


def _clock(seconds: list[float]) -> str:
    middle = sorted(seconds)[len(seconds) // 2]
    if middle < 600:
        return f"{middle:.0f} s"
    return f"{middle / 60:.0f} min" if middle < 36_000 else f"{middle / 3600:.0f} h"


def main() -> None:
    """Parse the sizes, generate data, measure."""
    found = parser(__doc__ or "")
    found.set_defaults(rounds=3)
    found.add_argument("--clips", type=int, default=72, help="of the generated corpus (default 72)")
    found.add_argument("--corpus", type=int, default=11_000, help="clips that ten folds are extrapolated to")
    found.add_argument("--epochs", type=int, default=50, help="of each of the ten folds (default 50)")
    found.add_argument("--batch", type=int, help="clips a step of the fine-tuned encoder [2 on a CPU, 32 on CUDA]")
    found.add_argument("--threads", type=int, default=usable_cores(), help="of one fold on a CPU (default: all cores)")
    found.add_argument("--device", choices=["cpu", "cuda", "both"], default="both")
    found.add_argument("--only", choices=["epoch", "jobs", "ten"], action="append", help="(default: all three)")
    options = found.parse_args()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import torch

    wanted = options.only or ["epoch", "jobs", "ten"]
    devices = ["cpu", "cuda"] if options.device == "both" else [options.device]
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as place:
        sys.path.insert(0, str(Path(__file__).parent))
        from generated_cache import write_cache, write_one_file

        folder = write_cache(Path(place) / "cache", options.clips)
        file = write_one_file(Path(place) / "clips.h5", options.clips)
        for device in devices:
            if device == "cuda" and not torch.cuda.is_available():
                none = (Measured("every way", (), note="no GPU here"),)
                results += [
                    Result("One fold-epoch, cuda", "clips/s", none, "5 ×"),
                    Result("Ten folds, cuda", "ten folds/day", none, "30 ×, under 3 min of training"),
                ]
                continue
            if "epoch" in wanted:
                results += fold_epochs(folder, file, options.clips, device, options.rounds, options.threads)
            if "jobs" in wanted and device == "cpu":
                results.append(jobs(folder, options.clips, options.rounds))
            if "ten" in wanted:
                batch = options.batch or (2 if device == "cpu" else 32)
                results += ten_folds(
                    folder, options.corpus, options.epochs, device, options.rounds, batch, options.threads,
                    trained=device == "cuda",
                )  # fmt: skip
    finish(results, options.json)


if __name__ == "__main__":
    main()
