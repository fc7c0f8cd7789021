"""The page in a real browser, without a network: it fits a phone and a desk, is not blank, and prints."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from mfhca_cache.reporting.page import write_page
from mfhca_cache.storage.cache import Cache

from .pages import copied

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--proxy-server=127.0.0.1:1",
)  # fmt: skip
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on the PATH")

#: Tells the page that holds it in a frame how wide it is, and what is wider than it and not in a box that scrolls.
PROBE = """<script>
const wide = [...document.querySelectorAll("body *")].filter(e => e.getBoundingClientRect().right > innerWidth + 1
  && !e.closest(".scroll, pre, svg"));
const small = [...document.querySelectorAll("svg text")].map(e => e.getBoundingClientRect().height).filter(h => h);
parent.postMessage([innerWidth, document.scrollingElement.scrollWidth, Math.min(...small),
  wide.map(e => e.tagName + "." + e.className).join()].join("|"), "*");
</script></body>"""
#: Headless windows are never narrower than 500 pixels; a frame is as narrow as it is told to be.
FRAME = """<!DOCTYPE html><body style="margin:0"><iframe src="probe.html" width="{0}" height="900" style="border:0">
</iframe><script>addEventListener("message", e => document.body.setAttribute("data-said", e.data))</script></body>"""


@pytest.fixture(scope="module")
def html(small_run: tuple[Path, Cache], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page, with names as long as corpora have them."""
    run, cache = small_run
    long = "a-feature-whose-name-is-as-long-as-those-of-real-encoders-of-many-layers-are"

    def change(record: dict[str, object]) -> None:
        record["caveats"] = [f"{long} has random weights: its features mean nothing"]

    return write_page(copied(run, tmp_path_factory.mktemp("page") / (long + "-seed0"), change), cache).path


def browse(folder: Path, page: Path, *more: str) -> str:
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={folder / 'profile'}", *more, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_never_scrolls_sideways(html: Path, tmp_path: Path, width: int) -> None:
    text = html.read_text(encoding="utf-8")
    (tmp_path / "probe.html").write_text(text.replace("</body>", PROBE), encoding="utf-8")
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME.format(width))
    shown = browse(tmp_path, frame, "--window-size=1400,900", "--virtual-time-budget=3000", "--dump-dom")
    said = re.findall(r'data-said="([^"]*)"', shown)
    assert said, shown[-500:]
    inner, scroll, smallest, wide = said[0].split("|")
    assert int(inner) == width
    assert int(scroll) <= width, wide
    assert wide == ""
    assert float(smallest) >= 8  # pixels, of a line of the smallest text of any figure


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_drawn_on_light_and_on_dark(html: Path, tmp_path: Path, scheme: str) -> None:
    from PIL import Image

    more = ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    browse(tmp_path, html, *more, "--window-size=1280,2400", f"--screenshot={tmp_path / 'shot.png'}")
    with Image.open(tmp_path / "shot.png") as image:
        pixels = np.asarray(image.convert("L"), dtype=float)
    background = np.median(pixels)
    assert background < 50 if scheme == "dark" else background > 220
    # Text and figures all the way down, and no more than a page has.
    inked = (np.abs(pixels - background) > 60).mean(axis=1)
    assert all(part.max() > 0.01 for part in np.array_split(inked, 8))
    assert 0.01 < inked.mean() < 0.3


def test_the_page_prints(html: Path, tmp_path: Path) -> None:
    browse(tmp_path, html, "--no-pdf-header-footer", f"--print-to-pdf={tmp_path / 'page.pdf'}")
    data = (tmp_path / "page.pdf").read_bytes()
    assert data.startswith(b"%PDF") and len(re.findall(rb"/Type\s*/Page\b", data)) >= 3
