from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mfhca_cache.errors import TrainingError
from mfhca_cache.models import MFHCA, paper
from mfhca_cache.reporting.embedding import t_sne
from mfhca_cache.reporting.figures import Drawing, Key, Panel, plain
from mfhca_cache.reporting.inside import attention_of, features_of
from mfhca_cache.reporting.latex import escape, latex
from mfhca_cache.reporting.stored import read_run
from mfhca_cache.reporting.style import COLOURS, class_colour, class_marker
from mfhca_cache.reporting.tables import Table, shown
from mfhca_cache.storage.cache import Cache

from .pages import Read


def drawing(draw: Callable[[Any], None], name: str = "trial") -> Drawing:
    return Drawing(name, (Panel(draw, "what it shows"),), (2.0, 1.5), keys=(Key("a & <b>", "class-1", "o"),))


def test_an_inline_figure_follows_the_page() -> None:
    def draw(part: Any) -> None:
        axes = part.subplots()
        axes.plot([1, 2, 3], [1, 3, 2], "o", color=COLOURS["class-1"])
        axes.set_title(plain("$5 <script> & $6"))

    (svg,) = drawing(draw).svgs()
    read = Read(svg)
    assert "$5 <script> & $6" in read.text and "script" not in read.tags
    assert "var(--class-1)" in svg and "var(--sans)" in svg
    assert not [code for code in COLOURS.values() if code in svg]
    assert "DejaVu" not in svg and "matplotlib" not in svg.lower().replace("matplotlib.axis", "")
    assert all(name.startswith("trial-0-") for name in read.ids)
    assert not re.search(r"\d\.\d{3}", svg)
    # Three marks of one look: said once.
    assert read.tags.count("use") >= 3
    assert not [1 for tag, key, _ in read.attributes if (tag, key) == ("use", "style")]


def test_every_colour_is_found_again() -> None:
    assert len(set(COLOURS.values())) == len(COLOURS)
    css = (Path(__file__).parents[1] / "mfhca_cache" / "reporting" / "templates" / "page.css").read_text()
    light, dark = css.split("@media screen and (prefers-color-scheme: dark)")[:2]
    for name, code in COLOURS.items():
        if name != "sound":
            assert f"--{name}: {code};" in light, name
            assert f"--{name}: #" in dark, name
    assert len({(class_colour(n), class_marker(n)) for n in range(64)}) == 64


def test_files_are_the_same_each_time_and_on_white() -> None:
    def draw(part: Any) -> None:
        part.subplots().plot([0, 1], [0, 1], color=COLOURS["accent"])

    files = drawing(draw).files()
    assert files == drawing(draw).files()
    assert set(files) == {"trial.png", "trial.pdf"}
    assert b"CreationDate" not in files["trial.pdf"]


def test_latex_runs_nothing_that_is_in_a_name() -> None:
    assert escape("\\input{x} $y$ 100% a_b & #1 ~ ^ [z] *") == (
        r"\textbackslash{}input\{x\} \$y\$ 100\% a\_b \& \#1 \textasciitilde{} \textasciicircum{} {[}z{]} {*}"
    )
    assert escape("two\nlines\x00") == "two lines"
    assert escape('50 % ± 2 · ravdess → emodb ✓ ✗ 1–2 −3 “a” "b" …') == (
        r"50 \% $\pm$ 2 $\cdot$ ravdess $\to$ emodb \checkmark{} $\times$ 1--2 --3 ``a'' ''b'' \ldots{}"
    )
    table = Table(
        "t",
        "50 % of it",
        (("a_b", "text"), ("n", "count"), ("UA", "percent")),
        (("x&y", 1234, 0.5), ("", None, None)),
        1,
    )
    text = latex(table)
    assert r"x\&y & 1,234 & 50.00 \\" in text and r"\caption{50 \% of it}" in text and r"a\_b & n & UA \\" in text
    assert text.index(r"\midrule", text.index("1,234")) > 0
    assert table.csv() == b"a_b,n,UA\nx&y,1234,0.5\n,,\n"
    assert (shown(float("nan"), "percent"), shown(None, "count"), shown(1.0, "percent")) == ("", "", "100.00")
    assert [shown(value, "count") for value in (0.01, 10.0, 1e5, 1_024_000)] == ["0.01", "10", "100,000", "1,024,000"]


def test_t_sne_keeps_neighbours_and_repeats_itself() -> None:
    random = np.random.default_rng(0)
    centres = np.repeat([[0.0] * 8, [40.0] * 8], 20, axis=0)
    points = (centres + random.normal(size=(40, 8))).astype(np.float32)
    points[:, 3] = 7.0  # never changes
    first, again = t_sne(points), t_sne(points)
    assert np.array_equal(first, again)
    a, b = first[:20], first[20:]
    assert np.linalg.norm(a.mean(0) - b.mean(0)) > 2 * max(a.std(), b.std())
    for bad, words in ((points[:5], "got 5"), (np.ones((9, 4)), "the same"), (np.full((9, 4), np.nan), "NaN")):
        with pytest.raises(TrainingError, match=words):
            t_sne(bad)


def test_attention_is_the_weight_that_the_model_uses() -> None:
    torch.manual_seed(0)
    model = MFHCA(paper(encoder_width=64, channels=(4,))).eval()
    f_spec, encoder = torch.randn(2, model.mf.width), torch.randn(2, 149, 64)
    weights = model.hca.over_time(f_spec)
    assert weights.shape == (2, 149) and (weights >= 0).all() and (weights > 0).any()
    with torch.no_grad():
        before = model.hca(f_spec, encoder)
        model.hca.weights.weight.zero_()
        model.hca.weights.bias.zero_()
        assert not model.hca.over_time(f_spec).any()
        assert not torch.equal(model.hca(f_spec, encoder), before)


def test_features_are_those_that_were_classified(small_run: tuple[Path, Cache]) -> None:
    run, cache = small_run
    result = read_run(run).results[0]
    single = result.predictions[result.predictions["clips"] == 1]
    found = features_of(cache, result, list(single["utterance_id"]))
    assert found.ids == list(single["utterance_id"])
    with torch.no_grad():
        logits = result.model().classifier(torch.from_numpy(found.final))
    np.testing.assert_allclose(logits.softmax(1), single.filter(like="p_"), atol=1e-5)
    assert found.before is not None and found.before.shape == (len(single), 8 * 6 + 32 * 2)


def test_attention_covers_every_clip_and_knows_the_padding(small_run: tuple[Path, Cache]) -> None:
    run, cache = small_run
    result = read_run(run).results[0]
    two = result.predictions[result.predictions["clips"] == 2]["utterance_id"].item()
    found = attention_of(cache, result, two)
    assert found is not None
    assert found.weights.shape == (2, 149) and (found.weights >= 0).all()
    assert found.spectrogram.shape == (2, 300, 200)
    assert found.valid.tolist() == [300, 40]  # 3.4 s
