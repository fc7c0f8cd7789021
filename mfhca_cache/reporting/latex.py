"""Tables as LaTeX, in booktabs style: ``\\usepackage{booktabs}``, then ``\\input{tables/scores}``."""

from __future__ import annotations

from mfhca_cache.reporting.tables import Kind, Table, shown

#: Every character that LaTeX reads as a command, and the signs of our tables that its fonts may lack: ✓ is of amssymb.
_ESCAPES = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': "''", "±": r"$\pm$", "·": r"$\cdot$", "×": r"$\times$", "−": "--", "–": "--",
    "→": r"$\to$", "✓": r"\checkmark{}", "✗": r"$\times$", "“": "``", "”": "''", "…": r"\ldots{}",
    # At the beginning of a row these would belong to the end of the row before.
    "[": "{[}", "]": "{]}", "*": "{*}",
}  # fmt: skip


def latex(table: Table) -> str:
    """A ``table`` environment with caption, label and a ``tabular``; every text in it is escaped."""
    columns = "".join("l" if kind == "text" else "r" for _, kind in table.columns)
    head = " & ".join(escape(heading) for heading, _ in table.columns)
    body = [" & ".join(_cell(v, kind) for v, (_, kind) in zip(r, table.columns, strict=True)) for r in table.rows]
    lines = [line + r" \\" for line in body]
    if table.ends:
        lines.insert(len(lines) - table.ends, r"\midrule")
    return "\n".join(
        [
            r"\begin{table}",
            r"  \centering",
            rf"  \caption{{{escape(table.caption)}}}",
            rf"  \label{{tab:{table.name}}}",
            rf"  \begin{{tabular}}{{{columns}}}",
            r"    \toprule",
            rf"    {head} \\",
            r"    \midrule",
            *(f"    {line}" for line in lines),
            r"    \bottomrule",
            r"  \end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def escape(text: str) -> str:
    """Text as LaTeX prints it: nothing in it is a command, begins a comment or ends a line."""
    return "".join(_ESCAPES.get(c, c) for c in " ".join(str(text).split()) if c.isprintable())


def _cell(value: object, kind: Kind) -> str:
    return escape(shown(value, kind))
