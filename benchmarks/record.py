"""Write what the benchmarks measured into docs/performance.md, between its two marks; the words around stay.

    make bench                                                 # runs them all, then this
    python benchmarks/record.py build/bench docs/performance.md

A table is one benchmark's run on one machine: rates are medians of its rounds, and ratios are to its first way.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

BEGIN, END = "<!-- figures: written by benchmarks/record.py -->", "<!-- end of figures -->"


def table(result: dict[str, Any]) -> str:
    """One table of a benchmark, as Markdown."""
    base = median(result["ways"][0]["rates"]) if result["ways"][0]["rates"] else None
    lines = [
        f"**{result['title']}**",
        "",
        f"| way | {result['unit']} | spread | ratio | of the limit | |",
        "|---|--:|--:|--:|--:|---|",
    ]
    for way in result["ways"]:
        note = way["note"]
        if not way["rates"]:
            lines.append(f"| {way['way']} | not measured | | | | {note} |")
            continue
        rate = median(way["rates"])
        ratio = f"{rate / base:.2f}" if base else ""
        share = f"{rate / way['limit']:.0%}" if way["limit"] else ""
        spread = f"{min(way['rates']):,.4g} … {max(way['rates']):,.4g}"
        lines.append(f"| {way['way']} | {rate:,.4g} | {spread} | {ratio} | {share} | {note} |")
    if result["target"]:
        lines += ["", f"Aimed at: {result['target']}"]
    return "\n".join(lines)


def steps_table(value: dict[str, Any]) -> str:
    """The steps of `benchmarks/metadata.py`, as Markdown."""
    lines = [f"**{value['title']}**", "", "| step | seconds | on a processor | GiB at most |", "|---|--:|--:|--:|"]
    for step in value["steps"]:
        gib = "" if step["gib"] is None else f"{step['gib']:.2f}"
        lines.append(f"| {step['name']} | {step['seconds']:,.2f} | {step['cpu_seconds']:,.2f} | {gib} |")
    return "\n".join(lines)


def described(machine: dict[str, Any]) -> str:
    """A machine in a line."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    parts = [f"{machine['cores']} cores of {machine.get('processor', 'an unknown processor')}"]
    parts += [f"{machine['memory_gib']} GiB of memory"] if "memory_gib" in machine else []
    parts += [machine.get("gpu", "no GPU")]
    return f"{'; '.join(parts)}. Python {machine['python']}, {versions}."


def figures(folder: Path) -> str:
    """Every benchmark's tables, behind the machine that they were measured on."""
    sections, before = list[str](), ""
    for path in sorted(folder.glob("*.json")):
        value = json.loads(path.read_text())
        machine = described(value["machine"])
        if machine != before:
            sections.append(f"Measured on {machine}")
            before = machine
        # A benchmark's other sizes lie beside it as metadata-10000000.json.
        heading = f"### `benchmarks/{path.stem.partition('-')[0]}.py`"
        sections += [heading] if heading not in sections else []
        sections += [table(result) for result in value["results"]] if "results" in value else [steps_table(value)]
    return "\n\n".join(sections)


def main() -> None:
    """Replace the page's figures by those of the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("page", type=Path)
    options = parser.parse_args()
    text = options.page.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        sys.exit(f"{options.page}: expected the marks {BEGIN} and {END}, once each")
    if not any(options.folder.glob("*.json")):
        sys.exit(f"{options.folder}: no benchmark has left its figures here; `make bench` runs them")
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    options.page.write_text(f"{head}{BEGIN}\n\n{figures(options.folder)}\n\n{END}{tail}")


if __name__ == "__main__":
    main()
