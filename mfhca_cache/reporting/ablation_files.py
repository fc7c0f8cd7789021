"""A table of the paper as files: JSON with everything, CSV with plain numbers, LaTeX and Markdown to paste."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from mfhca_cache.reporting.ablation import NOT_BUILT, AblationTable, RowResult
from mfhca_cache.reporting.joined import SCORES
from mfhca_cache.reporting.latex import escape
from mfhca_cache.storage.publish import publish, publish_json


def write_table(table: AblationTable, folder: Path) -> list[Path]:
    """Write table.json, table.csv, table.tex and table.md into a folder, each whole or not at all; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"table.{ending}" for ending in ("json", "csv", "tex", "md")]
    publish_json(paths[0], table.to_json())
    publish(paths[1], to_frame(table).to_csv(index=False, lineterminator="\n").encode())
    publish(paths[2], to_latex(table).encode())
    publish(paths[3], to_markdown(table).encode())
    return paths


def to_frame(table: AblationTable) -> pd.DataFrame:
    """A row each, numbers as they are (scores in 0…1, published in percent); the cautions in every row."""
    cautions = "; ".join(table.cautions())
    rows = []
    for row in table.rows:
        wa, ua = row.published or (None, None)
        scores = {
            f"{kind}_{name}": getattr(row, kind).get(name) for kind in ("mean", "std", "pooled") for name in SCORES
        }
        ends = {
            f"{kind}_{name}_{end}": getattr(row, f"{prefix}intervals").get(name, (None, None))[at]
            for kind, prefix in (("mean", ""), ("pooled", "pooled_"))
            for name in SCORES[:2]
            for at, end in enumerate(("low", "high"))
        }
        rows.append(
            {
                "row": row.number,
                "name": row.name,
                **dict(zip(table.columns, (row.label, *row.cells), strict=True)),
                "state": row.state,
                "features": "+".join(row.features.values()),
                "folds": row.folds,
                "of": row.of,
                **scores,
                **ends,
                "parameters": row.parameters,
                "seconds_a_fold": row.seconds_a_fold,
                "seconds": row.seconds,
                "published_iemocap_wa": wa,
                "published_iemocap_ua": ua,
                "random_weights": row.random_weights,
                "optimistic": row.optimistic,
                "run": " ".join(row.runs),
                "protocol": table.protocol,
                "cautions": cautions,
            }
        )
    return pd.DataFrame(rows).astype({"parameters": "Int64"})


def to_markdown(table: AblationTable) -> str:
    """A Markdown table and its remarks as a list."""
    headers, rows = text_cells(table)
    align = ["---:", *["---"] * len(table.columns), *["---:"] * (len(headers) - len(table.columns) - 1)]
    lines = [f"**{_caption(table)}**", "", _pipes(headers), _pipes(align), *map(_pipes, rows), ""]
    lines += [f"- {line}" for line in (*table.cautions(), *table.remarks())]
    return "\n".join(lines) + "\n"


def to_latex(table: AblationTable) -> str:
    """A table for LaTeX with the packages booktabs, amssymb and graphicx; the remarks below it in small print."""
    headers, rows = text_cells(table)
    own = 1 + len(table.columns)
    body = []
    for before, row, cells in zip((None, *table.rows), table.rows, rows, strict=False):
        if row.apart and before is not None and not before.apart:
            body.append(r"\midrule")
        body.append(" & ".join(map(escape, cells)) + r" \\")
    return "\n".join(
        [
            r"% \usepackage{booktabs,amssymb,graphicx}",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escape(_caption(table))}}}",
            rf"\resizebox{{\linewidth}}{{!}}{{\begin{{tabular}}{{r{'l' * (own - 1)}{'r' * (len(headers) - own)}}}",
            r"\toprule",
            " & ".join(map(escape, headers)) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}}",
            "",
            r"\smallskip",
            r"\begin{minipage}{\linewidth}\footnotesize",
            *(
                escape(line[:1].upper() + line[1:].removesuffix(".")) + r".\par"
                for line in (*table.cautions(), *table.remarks())
            ),
            r"\end{minipage}",
            r"\end{table}",
            "",
        ]
    )


def text_cells(table: AblationTable) -> tuple[list[str], list[list[str]]]:
    """Headers and rows as text: number, the table's own columns, scores, parameters, seconds, published figures."""
    headers = ["row", *table.columns, "WA", "UA", "pooled WA", "pooled UA", "parameters", "s/fold"]
    headers += [f"{table.published_header} {name}" for name in ("WA", "UA")] * table.shows_published
    return headers, [_row_cells(row, table.shows_published) for row in table.rows]


def mean_std(row: RowResult, name: str) -> str:
    """``71.12 ± 2.40`` in percent; the mean alone for one fold; empty where nothing is trained."""
    if name not in row.mean:
        return ""
    spread = f" ± {100 * row.std[name]:.2f}" if name in row.std else ""
    return f"{100 * row.mean[name]:.2f}{spread}"


def limits(row: RowResult, name: str) -> str:
    """``[69.8, 72.5]``, the 95 % interval in percent; empty where there is none."""
    low, high = row.intervals.get(name, (None, None))
    return f"[{100 * low:.1f}, {100 * high:.1f}]" if low is not None and high is not None else ""


def _row_cells(row: RowResult, published: bool) -> list[str]:
    label = row.label + (" (random weights)" if row.random_weights and row.folds else "")
    scores = [" ".join(filter(None, (mean_std(row, name), limits(row, name)))) for name in SCORES[:2]]
    scores += [f"{100 * row.pooled[name]:.2f}" if row.pooled else "" for name in SCORES[:2]]
    if not row.folds:
        scores[0] = NOT_BUILT if row.state == NOT_BUILT else row.state
    more = [f"{row.parameters:,}" if row.parameters else "", f"{row.seconds_a_fold:.1f}" if row.seconds_a_fold else ""]
    figures = [f"{value:.2f}" for value in row.published] if row.published else ["", ""]
    return [str(row.number), label, *row.cells, *scores, *more, *figures * published]


def _caption(table: AblationTable) -> str:
    seeds = f"seed {table.seeds[0]}" if len(table.seeds) == 1 else f"{len(table.seeds)} seeds"
    changes = "".join(f", {text}" for text in table.changed)
    optimistic = " (optimistic)" if any(row.optimistic for row in table.rows) else ""
    over = "folds" if len(table.seeds) == 1 else "folds and seeds"
    run = f"protocol {table.protocol}{optimistic}, preset {table.preset}{changes}, {seeds}"
    brackets = " [95 % interval]" if any(row.intervals for row in table.rows) else ""
    return f"{table.title}, on {table.corpus}, {run}; mean ± standard deviation over {over}{brackets}, in percent"


def _pipes(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
