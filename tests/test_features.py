"""Features beside the spectrogram and the final layer, through the whole of stage one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast, RobertaConfig, RobertaModel

from mfhca_cache.errors import CacheError, EncoderError, MfhcaError
from mfhca_cache.extraction.audio import load_audio
from mfhca_cache.extraction.checkpoint import quiet_transformers
from mfhca_cache.extraction.clips import cut_clips
from mfhca_cache.extraction.encoder import load_encoder
from mfhca_cache.extraction.mel import log_mels, mfccs
from mfhca_cache.extraction.pipeline import extract
from mfhca_cache.extraction.text import load_text_encoder
from mfhca_cache.manifest import Manifest
from mfhca_cache.spec import ClipSpec, EncoderSpec, ExtractSpec, Layers, LogMelSpec, MFCCSpec, parse_layers
from mfhca_cache.storage.cache import open_cache
from mfhca_cache.storage.inventory import list_cache

from .conftest import TINY, small_corpus

WORDS = ("who", "are", "you", "talking", "to", "now", "i", "said", "so")


def tiny(layers: Layers = "last", pool: str | None = None, **others: object) -> ExtractSpec:
    encoder = EncoderSpec("random-tiny", layers=layers, pool=pool)  # type: ignore[arg-type]
    return ExtractSpec(encoder=encoder, spectrogram=None, **others)  # type: ignore[arg-type]


def contents(folder: Path) -> dict[Path, bytes]:
    return {
        path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file() and ".lock" not in path.name
    }


@pytest.fixture(scope="module")
def many(small_manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache with every kind of clip feature, each added by a command of its own."""
    folder = tmp_path_factory.mktemp("many") / "c"
    extract(small_manifest, folder, TINY, device="cpu")
    before = contents(folder)
    for spec in (
        tiny("all"),
        tiny((1,)),
        tiny((0, 2), "mean"),
        tiny(pool="mean"),
        ExtractSpec(encoder=None, spectrogram=None, log_mel=LogMelSpec(), mfcc=MFCCSpec()),
        ExtractSpec(encoder=None, spectrogram=None, log_mel=LogMelSpec(mels=26)),
    ):
        assert extract(small_manifest, folder, spec, device="cpu").new_shards
    after = contents(folder)
    assert all(after[path] == content for path, content in before.items())
    return folder


def test_each_feature_is_a_folder_of_one_cache_in_line_by_clip(many: Path) -> None:
    cache = open_cache(many)
    assert {name: info.shape for name, info in cache.features.items()} == {
        "spectrogram": (300, 200),
        "random-tiny": (149, 64),
        "random-tiny.1": (149, 64),
        "random-tiny.all": (3, 149, 64),
        "random-tiny.0-2.mean": (2, 64),
        "random-tiny.mean": (64,),
        "log-mel-128": (300, 128),
        "log-mel-26": (300, 26),
        "mfcc-40": (300, 40),
    }
    assert [cache.features[name].frame_axis for name in ("random-tiny.all", "mfcc-40", "random-tiny.mean")] == [
        1,
        0,
        None,
    ]
    assert not any(cache.missing(name) for name in cache.features) and not cache.verify()


def test_layers_and_means_agree_with_the_final_layer(many: Path) -> None:
    names = ["random-tiny", "random-tiny.1", "random-tiny.all", "random-tiny.0-2.mean", "random-tiny.mean"]
    loaded = open_cache(many).load(names)
    last, one, every, two, mean = (loaded[name].float() for name in names)
    assert torch.equal(every[:, 2], last) and torch.equal(every[:, 1], one)
    valid = loaded["clips"]["valid_random-tiny"]
    assert (valid < 149).any()
    by_hand = torch.stack([part[:, :n].mean(1) for part, n in zip(every, valid, strict=True)])
    torch.testing.assert_close(mean, by_hand[:, 2], atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(two, by_hand[:, [0, 2]], atol=2e-3, rtol=2e-3)


def test_log_mel_and_mfcc_are_of_the_same_clips(many: Path, small_manifest: Manifest) -> None:
    loaded = open_cache(many).load(["log-mel-128", "mfcc-40"], ["Ses01_F002"])
    row = small_manifest.utterances.set_index("utterance_id").loc["Ses01_F002"]
    assert small_manifest.root is not None
    clips = torch.from_numpy(cut_clips(load_audio(small_manifest.root / row["path"]), ClipSpec())[0])
    torch.testing.assert_close(loaded["log-mel-128"], log_mels(clips, LogMelSpec()).half())
    torch.testing.assert_close(loaded["mfcc-40"], mfccs(clips, MFCCSpec()).half(), atol=0.3, rtol=1e-2)
    assert list(loaded["clips"]["valid_mfcc-40"]) == [300, 40]


def test_the_mean_is_over_the_frames_that_come_from_signal(tmp_path: Path) -> None:
    manifest = small_corpus(tmp_path / "w", sessions=1)
    extract(manifest, tmp_path / "c", tiny(pool="mean", clip=ClipSpec(pad="features")), device="cpu")
    got = open_cache(tmp_path / "c").load("random-tiny.mean", ["Ses01_F000"])["random-tiny.mean"]
    assert manifest.root is not None
    samples = load_audio(manifest.root / "Ses01_F000.wav")
    alone = load_encoder(EncoderSpec("random-tiny")).encode(samples[None])[0]
    torch.testing.assert_close(got[0].float(), alone.mean(0), atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize(("text", "layers"), [("last", "last"), ("all", "all"), ("6,9,12", (6, 9, 12)), ("0", (0,))])
def test_layers_as_they_are_typed(text: str, layers: Layers) -> None:
    assert parse_layers(text) == layers


@pytest.mark.parametrize("text", ["first", "", "9,6", "3,3", "-1", "1.5"])
def test_layers_that_mean_nothing(text: str) -> None:
    with pytest.raises(MfhcaError, match="layers: got"):
        EncoderSpec(layers=parse_layers(text))


def bert(folder: Path, seed: int = 0) -> BertModel:
    """A small BERT of random weights that knows a few words."""
    folder.mkdir(parents=True, exist_ok=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    torch.manual_seed(seed)
    model = BertModel(
        BertConfig(vocab_size=len(words), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                   intermediate_size=64, max_position_embeddings=16)
    )  # fmt: skip
    with quiet_transformers():
        model.save_pretrained(folder)
        BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=16).save_pretrained(folder)
    return model.eval()


def spoken(manifest: Manifest, texts: dict[str, str]) -> Manifest:
    table = manifest.utterances.copy()
    table["text"] = [texts.get(name, " ".join(WORDS[: 1 + n % 9])) for n, name in enumerate(table["utterance_id"])]
    return replace(manifest, utterances=table)


def of_text(folder: Path) -> ExtractSpec:
    return ExtractSpec(encoder=None, spectrogram=None, text_encoder=EncoderSpec(str(folder)))


def test_transcripts_become_one_run_of_tokens_an_utterance(small_manifest: Manifest, tmp_path: Path) -> None:
    model = bert(tmp_path / "bert")
    manifest = spoken(
        small_manifest, {"Ses02_M001": "who are you talking to", "Ses01_F000": " ", "Ses01_F001": "to " * 15}
    )
    extract(manifest, tmp_path / "c", TINY, "session2", device="cpu")
    report = extract(manifest, tmp_path / "c", of_text(tmp_path / "bert"), device="cpu")
    reasons = {item.path: item.reason.split(":")[0] for item in report.rejected}
    assert reasons == {"Ses01_F000": "no-text", "Ses01_F001": "too-long"}
    assert report.ok == 22 and report.features == ("bert",)
    cache = open_cache(tmp_path / "c")
    assert not cache.verify() and not cache.missing("bert")
    ids = ["Ses02_M001", "Ses02_F000", "Ses02_M001"]
    loaded = cache.load(["random-tiny", "bert"], ids)
    assert loaded["utterances"] == ids and list(loaded["clips"]["utterance_id"].unique()) == ids[:2]
    tokens = torch.tensor([[2, 5, 6, 7, 8, 9, 3]])
    with torch.inference_mode():
        expected = model(tokens).last_hidden_state[0]
    torch.testing.assert_close(loaded["bert"][0].float(), expected, atol=2e-3, rtol=2e-3)
    assert [len(part) for part in cache.load("bert", ids)["bert"]] == [7, *[len(loaded["bert"][1])], 7]
    with pytest.raises(CacheError, match=r"'Ses01_F000' has no bert.*no-text"):
        cache.load("bert", ["Ses01_F000"])
    assert extract(manifest, tmp_path / "c", of_text(tmp_path / "bert"), device="cpu").new_shards == 0


def test_an_utterance_without_words_keeps_its_clips(small_manifest: Manifest, tmp_path: Path) -> None:
    bert(tmp_path / "bert")
    manifest = spoken(small_manifest, {"Ses01_F002": ""})
    both = replace(of_text(tmp_path / "bert"), log_mel=LogMelSpec())
    report = extract(manifest, tmp_path / "c", both, device="cpu")
    assert (report.ok, report.clips, report.new_clips, report.rejected) == (24, 30, 30, ())
    assert "1 utterance(s) have no features of their text, such as Ses01_F002 (no-text" in report.notes[-1]


def test_roberta_counts_its_positions_from_behind_the_paddings(tmp_path: Path) -> None:
    bert(tmp_path / "r")
    model = RobertaModel(
        RobertaConfig(vocab_size=14, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
                      max_position_embeddings=16, pad_token_id=0, type_vocab_size=2)
    )  # fmt: skip
    with quiet_transformers():
        model.save_pretrained(tmp_path / "r")
    encoder = load_text_encoder(EncoderSpec(str(tmp_path / "r")))
    assert encoder.longest == 15
    assert len(encoder.encode("to " * 13)) == 15
    with pytest.raises(EncoderError, match=r"got 16 tokens; .* takes 15"):
        encoder.encode("to " * 14)


def test_a_corrected_transcript_is_never_read_stale(small_manifest: Manifest, tmp_path: Path) -> None:
    bert(tmp_path / "bert")
    first = spoken(small_manifest, {"Ses02_M001": "who", "Ses03_F000": ""})
    extract(first, tmp_path / "c", of_text(tmp_path / "bert"), device="cpu")
    untouched = (tmp_path / "c" / "bert" / "session1-0000.h5").stat().st_mtime_ns
    mended = spoken(small_manifest, {"Ses02_M001": "who are you", "Ses03_F000": "now"})
    # Labels and the like may flow into the cache by any command; then the old tokens are no longer the text's.
    notes = extract(mended, tmp_path / "c", ExtractSpec(encoder=None), "session1", device="cpu").notes
    assert notes[1].startswith("transcripts have changed: bert is read again once `mfhca extract --text-encoder ")
    listing = {item.info.name: item for item in list_cache(tmp_path / "c").features}["bert"]
    assert (listing.damaged, listing.missing) == (0, {"session2": 1, "session3": 1})
    with pytest.raises(CacheError, match=r"session2-0000\.json: .*other transcripts"):
        open_cache(tmp_path / "c").load("bert", ["Ses02_M001"])
    report = extract(mended, tmp_path / "c", of_text(tmp_path / "bert"), device="cpu")
    assert (report.new_shards, report.new_texts, report.new_clips) == (2, 16, 0) and not report.rejected
    loaded = open_cache(tmp_path / "c").load("bert", ["Ses02_M001", "Ses03_F000"])["bert"]
    assert [len(part) for part in loaded] == [5, 3]
    assert (tmp_path / "c" / "bert" / "session1-0000.h5").stat().st_mtime_ns == untouched


def test_damaged_tokens_are_an_error(small_manifest: Manifest, tmp_path: Path) -> None:
    bert(tmp_path / "bert")
    extract(spoken(small_manifest, {}), tmp_path / "c", of_text(tmp_path / "bert"), device="cpu")
    cache = open_cache(tmp_path / "c")
    path = tmp_path / "c" / "bert" / "session2-0000.h5"
    receipt = cache.receipts("bert")["session2-0000"]
    assert receipt is not None
    content = bytearray(path.read_bytes())
    content[receipt.offset] ^= 1
    path.write_bytes(content)
    with pytest.raises(CacheError, match=r"session2-0000\.h5: 1 utterance\(s\) are damaged"):
        cache.load("bert")
    assert len(cache.load("bert", [f"Ses03_{s}00{n}" for s in "FM" for n in range(4)])["bert"]) == 8


def test_another_tokenizer_is_refused(small_manifest: Manifest, tmp_path: Path) -> None:
    bert(tmp_path / "bert")
    manifest = spoken(small_manifest, {})
    extract(manifest, tmp_path / "c", of_text(tmp_path / "bert"), "session1", device="cpu")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *reversed(WORDS)]
    (tmp_path / "bert" / "vocab.txt").write_text("\n".join(words) + "\n")
    with quiet_transformers():
        BertTokenizerFast(str(tmp_path / "bert" / "vocab.txt"), model_max_length=16).save_pretrained(tmp_path / "bert")
    with pytest.raises(CacheError, match="tokenizer_sha256"):
        extract(manifest, tmp_path / "c", of_text(tmp_path / "bert"), device="cpu")


def test_a_text_encoder_without_its_tokenizer_says_so(tmp_path: Path) -> None:
    bert(tmp_path / "bert")
    for name in ("tokenizer_config.json", "tokenizer.json", "vocab.txt"):
        (tmp_path / "bert" / name).unlink(missing_ok=True)
    with pytest.raises(EncoderError, match="has no vocabulary"):
        load_text_encoder(EncoderSpec(str(tmp_path / "bert")))


def test_nothing_to_extract_is_an_error() -> None:
    with pytest.raises(MfhcaError, match="nothing to extract"):
        ExtractSpec(encoder=None, spectrogram=None)


def test_available_counts_only_what_every_feature_holds(many: Path, small_manifest: Manifest) -> None:
    cache = open_cache(many)
    everyone = cache.available(list(cache.features))
    assert sorted(everyone) == sorted(small_manifest.utterances["utterance_id"])
    assert isinstance(cache.utterances, pd.DataFrame)
    assert np.all(cache.utterances["clips"] >= 1)
