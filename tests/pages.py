"""A small run with a page's every figure, and what its tests change of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from mfhca_cache.extraction.pipeline import extract
from mfhca_cache.storage.cache import Cache, open_cache
from mfhca_cache.training.crossval import cross_validate
from mfhca_cache.training.options import TrainOptions

from .conftest import LABELS, TINY, build_manifest, tone, write_wav

OPTIONS = TrainOptions(
    preset="quick", epochs=2, threads=1, changes=(("channels", (4, 8)), ("hidden", 16), ("batch", 16))
)


def make_run(root: Path) -> tuple[Path, Cache]:
    """Three speakers of eight utterances, one of which has two clips; trained for two epochs."""
    rows: list[dict[str, object]] = []
    for speaker, base in (("1F", 220.0), ("2M", 120.0), ("3F", 180.0)):
        for number in range(8):
            name = f"{speaker}_{number}"
            write_wav(
                root / "w" / f"{name}.wav", tone(3.4 if number == 0 else 0.8, base + 25 * (number % 4), len(rows))
            )
            label = LABELS[number % 4]
            rows.append({"utterance_id": name, "speaker": speaker, "session": f"session{speaker[0]}", "label": label})
    extract(build_manifest(root / "w", rows), root / "cache" / "small", TINY, device="cpu")
    cache = open_cache(root / "cache" / "small")
    cross_validate(cache, OPTIONS, run=root / "runs" / "trial", device="cpu")
    return root / "runs" / "trial", cache


def copied(run: Path, folder: Path, change: Callable[[dict[str, Any]], Any] = lambda _: None) -> Path:
    """A copy of a run, each of its folds' records changed."""
    target = Path(shutil.copytree(run, folder))
    for name in ("report.html", "figures", "tables"):
        path = target / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    for path in target.glob("fold*/result.json"):
        record = json.loads(path.read_text())
        change(record)
        path.write_text(json.dumps(record))
    return target


class Read(HTMLParser):
    """A page's elements, text, names and links; an error where an element is not closed as it was opened."""

    VOID = ("meta", "link", "br", "img", "hr", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        self._attributes(tag, attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._attributes(tag, attrs)

    def _attributes(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            elif name in ("href", "src", "xlink:href"):
                self.links.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text += data
