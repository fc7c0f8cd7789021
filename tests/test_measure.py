"""The benchmarks' common ground: ways are timed in turn, and what was measured is what the page says."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def benchmarks_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


def test_ways_are_timed_in_turn_and_the_warm_up_does_not_count() -> None:
    import measure

    order: list[str] = []
    ways = {name: (lambda name=name: order.append(name)) for name in ("a", "b")}
    rates = measure.side_by_side(ways, work=10, rounds=3, warm_up=1)
    assert order == ["a", "b"] * 4
    assert {name: len(found) for name, found in rates.items()} == {"a": 3, "b": 3}
    assert min(min(found) for found in rates.values()) > 0


def test_a_table_gives_medians_ratios_and_shares_and_says_what_was_not_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import measure

    ways = (
        measure.Measured("one at a time", (2.0, 4.0, 3.0)),
        measure.Measured("together", (6.0, 9.0, 5.0), limit=12.0, note="in batches"),
        measure.Measured("on a GPU", (), note="no GPU here"),
    )
    measure.finish([measure.Result("clips encoded", "clips/s", ways, "twice as fast")], tmp_path / "new" / "x.json")
    text = capsys.readouterr().out
    row = next(line for line in text.splitlines() if "together" in line)
    assert [word for word in row.replace("│", " ").split() if word != "…"] == [
        "together", "6", "5", "9", "2.00", "50%", "in", "batches",
    ]  # fmt: skip
    assert "not measured" in text and "no GPU here" in text and "twice as fast" in text
    value = json.loads((tmp_path / "new" / "x.json").read_text())
    assert value["results"][0]["ways"][0]["rates"] == [2.0, 4.0, 3.0]
    assert value["machine"]["cores"] >= 1 and "torch" in value["machine"]["versions"]


def test_the_page_takes_the_figures_and_keeps_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import measure
    import record

    ways = (measure.Measured("before", (1.0,)), measure.Measured("after", (3.0, 2.0, 4.0), limit=6.0))
    measure.finish([measure.Result("a | table", "steps/s", ways)], tmp_path / "figures" / "train.json")
    step = {"name": "open_cache", "seconds": 2.5, "cpu_seconds": 2.0, "gib": None}
    steps = {"machine": measure.machine(), "title": "ten clips", "steps": [step]}
    for name in ("metadata", "metadata-10"):
        (tmp_path / "figures" / f"{name}.json").write_text(json.dumps(steps))
    page = tmp_path / "page.md"
    page.write_text(f"Before.\n\n{record.BEGIN}\nold figures\n{record.END}\n\nAfter.\n")
    monkeypatch.setattr(sys, "argv", ["record.py", str(tmp_path / "figures"), str(page)])
    for _ in range(2):  # The second time over its own figures.
        record.main()
        text = page.read_text()
        assert text.startswith("Before.\n\n") and text.endswith("\n\nAfter.\n")
        assert text.count("| open_cache | 2.50 | 2.00 |  |") == 2 and text.count("benchmarks/metadata.py") == 1
        assert "old figures" not in text and text.count("| after | 3 | 2 … 4 | 3.00 | 50% |") == 1
    page.write_text("no marks\n")
    with pytest.raises(SystemExit, match="expected the marks"):
        record.main()
    assert page.read_text() == "no marks\n"
