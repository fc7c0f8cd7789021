"""The paper's Tables I to IV (arXiv 2404.13509) as data: what each row is trained from, and what was published.

A row's inputs are roles, found among the features of a cache when it is trained (`mfhca_cache.training.ablation`):
``spectrogram``; ``hubert`` and ``w2v2``, an encoder of that family; ``encoder``, HuBERT where the cache has it, else
its only encoder; ``baseline``, the encoder of the paper's baseline, wav2vec 2.0, with the same way out; ``layers``,
all layers of ``encoder`` where they are cached, else the last; ``mfcc``; ``log-mel``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mfhca_cache.errors import TrainingError
from mfhca_cache.models.settings import MFHCASettings
from mfhca_cache.spec import settings as settings_of
from mfhca_cache.training.encoders import is_the_papers

#: A fusion or network that the row does without is replaced by the baseline's.
_NO_MF = (("spectrogram_network", "alexnet"),)
_NO_HCA = (("fusion", "co-attention"),)
_NOT_BUILT = "not built yet"
_FITTED = "mean and standard deviation over the frames of an utterance; no epochs, so one run serves all presets"


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        name: what ``--row`` calls it.
        label: what the table calls it.
        inputs: roles; none where the system is not built yet.
        model: as in `mfhca_cache.training.options.TrainOptions`.
        changes: of the model's settings.
        cells: what stands in the table's own columns.
        published: WA and UA on IEMOCAP in percent; None for a row that the paper does not have.
        note: what must be said beside the row.
        apart: below a line, because it is no row of the paper.
    """

    name: str
    label: str
    inputs: tuple[str, ...] = ()
    model: str = "mfhca"
    changes: tuple[tuple[str, Any], ...] = ()
    cells: tuple[str, ...] = ()
    published: tuple[float, float] | None = None
    note: str = ""
    apart: bool = False

    @property
    def built(self) -> bool:
        """Whether this product has the system."""
        return bool(self.inputs)


@dataclass(frozen=True)
class Table:
    """A table of the paper.

    Attributes:
        name: of the command's argument, ``table2``.
        title: what the table is about.
        columns: headers of its own columns, those of `Row.label` and `Row.cells`.
        rows: in the paper's order.
        full: name of the row that is the whole of MFHCA.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...] = field(repr=False)
    full: str

    @property
    def varied(self) -> frozenset[str]:
        """Settings of the model that its rows differ in."""
        return frozenset(name for row in self.rows for name, _ in row.changes)

    def find(self, words: Sequence[str]) -> tuple[Row, ...]:
        """The rows that numbers from 1, names or labels mean, in the table's order; all for none.

        Raises:
            TrainingError: no such row; the message lists them.
        """
        if not words:
            return self.rows
        found = set()
        numbered = list(enumerate(self.rows, start=1))
        for word in (text.strip().lower() for text in words):
            meant = [number for number, row in numbered if word in (str(number), row.name.lower())]
            meant = meant or [number for number, row in numbered if word == row.label.lower()]
            if len(meant) != 1:
                known = ", ".join(f"{number} ({row.name})" for number, row in numbered)
                what = "is not known" if not meant else "means several rows"
                raise TrainingError(f"{self.name}: row {word!r} {what}; expected one of {known}")
            found.add(meant[0])
        return tuple(row for number, row in numbered if number in found)


def _ablated(name: str, label: str, inputs: str, mf: bool, hca: bool, wa: float, ua: float) -> Row:
    """A row of Table II; a network or fusion that needs an input which the row lacks is neither there nor replaced."""
    roles = tuple(inputs.split("+"))
    changes = _NO_MF * ("spectrogram" in roles and not mf) + _NO_HCA * (len(roles) > 1 and not hca)
    cells = tuple("✓" if there else "✗" for there in (mf, hca))
    return Row(name, label, roles, changes=changes, cells=cells, published=(wa, ua))


def _channels(*counts: int, wa: float, ua: float) -> Row:
    name = "-".join(map(str, counts))
    changes = (("channels", counts),)
    return Row(name, name, ("spectrogram", "encoder"), changes=changes, cells=(str(len(counts)),), published=(wa, ua))


def _rate(rate: int, wa: float, ua: float) -> Row:
    return Row(f"1/{rate}", f"1/{rate}", ("spectrogram", "encoder"), changes=(("rate", rate),), published=(wa, ua))


TABLES = {
    table.name: table
    for table in (
        Table(
            "table1",
            "Table I: comparison of systems",
            ("system", "mod."),
            (
                Row("hnsd", "HNSD [18]", cells=("A",), published=(70.50, 72.50), note=_NOT_BUILT),
                Row(
                    "co-attention", "Co-attention [13]", ("spectrogram", "mfcc", "baseline"), "co-attention",
                    cells=("A",), published=(71.64, 72.70),
                ),
                Row("smw-cat", "SMW_CAT [8]", cells=("A",), published=(73.80, 74.25), note=_NOT_BUILT),
                Row("e2e-asr", "E2e ASR [20]", cells=("A+T",), published=(71.70, 72.60), note=_NOT_BUILT),
                Row(
                    "cross-representation", "Cross-repr. [21]", cells=("A+T",), published=(73.00, 73.50),
                    note=_NOT_BUILT,
                ),
                Row("mfhca", "MFHCA", ("spectrogram", "encoder"), cells=("A",), published=(74.24, 74.57)),
                Row(
                    "linear-probe", "Linear probe", ("layers",), "linear-probe", cells=("A",), apart=True,
                    note="SUPERB's: learned weights of the layers, their mean over time, a linear layer",
                ),
                Row(
                    "attentive-pooling", "Attentive pooling", ("encoder",), "attentive-pooling", cells=("A",),
                    apart=True,
                ),
                Row("svm", "SVM, statistics", ("encoder",), "svm", cells=("A",), apart=True, note=_FITTED),
                Row("ridge", "Ridge, statistics", ("encoder",), "ridge", cells=("A",), apart=True, note=_FITTED),
                Row(
                    "ridge-log-mel", "Ridge, log-mel", ("log-mel",), "ridge", cells=("A",), apart=True, note=_FITTED
                ),
            ),
            "mfhca",
        ),
        Table(
            "table2",
            "Table II: ablation of MF and HCA",
            ("input", "MF", "HCA"),
            (
                _ablated("spec", "Spec", "spectrogram", False, False, 62.13, 62.25),
                _ablated("spec-mf", "Spec", "spectrogram", True, False, 62.21, 62.37),
                _ablated("hubert", "Hubert", "hubert", False, False, 69.99, 70.57),
                _ablated("spec-w2v2", "Spec + W2V2", "spectrogram+w2v2", False, False, 70.05, 71.30),
                _ablated("spec-w2v2-mf", "Spec + W2V2", "spectrogram+w2v2", True, False, 71.73, 72.32),
                _ablated("spec-w2v2-hca", "Spec + W2V2", "spectrogram+w2v2", False, True, 70.72, 72.09),
                _ablated("spec-w2v2-mf-hca", "Spec + W2V2", "spectrogram+w2v2", True, True, 72.00, 73.44),
                _ablated("spec-hubert", "Spec + Hubert", "spectrogram+hubert", False, False, 72.13, 72.51),
                _ablated("spec-hubert-mf", "Spec + Hubert", "spectrogram+hubert", True, False, 73.72, 74.53),
                _ablated("spec-hubert-hca", "Spec + Hubert", "spectrogram+hubert", False, True, 73.19, 73.72),
                _ablated("spec-hubert-mf-hca", "Spec + Hubert", "spectrogram+hubert", True, True, 74.24, 74.57),
            ),
            "spec-hubert-mf-hca",
        ),
        Table(
            "table3",
            "Table III: channels of the GRF blocks",
            ("channels", "blocks"),
            (
                _channels(16, 32, wa=73.76, ua=74.02),
                _channels(16, 32, 48, wa=74.24, ua=74.57),
                _channels(16, 32, 64, wa=73.60, ua=74.49),
                _channels(16, 32, 48, 64, wa=73.67, ua=74.03),
                _channels(16, 32, 64, 128, wa=72.75, ua=73.78),
            ),
            "16-32-48",
        ),
        Table(
            "table4",
            "Table IV: sampling ratio r",
            ("r",),
            (
                _rate(2, 73.82, 74.33),
                _rate(4, 74.24, 74.57),
                _rate(8, 72.22, 73.34),
                _rate(16, 71.12, 72.69),
            ),
            "1/4",
        ),
    )
}  # fmt: skip


#: Role of a row → the family of the encoder that the paper has there.
_ENCODERS = {"hubert": "hubert", "w2v2": "wav2vec2", "encoder": "hubert", "baseline": "wav2vec2"}


def find_published(
    model: str,
    features: Mapping[str, str],
    settings: Mapping[str, Any],
    encoders: Mapping[str, Mapping[str, Any]] | None = None,
) -> tuple[float, float, str] | None:
    """WA and UA in percent, and the row of the tables, that the paper has for a model on features; None for none.

    Args:
        features: role (spectrogram, mfcc, encoder) → the feature's name.
        settings: of the model, as plain values; what is absent is the paper's.
        encoders: feature of an encoder → `mfhca_cache.training.encoders.describe_encoder`; one that is absent is judged
            by its name.
    """
    of_mfhca = settings_of(MFHCASettings()) | {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
    known = encoders or {}
    for table in (TABLES[name] for name in ("table2", "table1", "table3", "table4")):
        for row in table.rows:
            roles = ["encoder" if role in _ENCODERS else role for role in row.inputs]
            families = [_ENCODERS[role] for role in row.inputs if role in _ENCODERS]
            if row.published is None or row.model != model or sorted(roles) != sorted(features):
                continue
            if families and not is_the_papers(families[0], name := features["encoder"], known.get(name)):
                continue
            wanted = settings_of(MFHCASettings()) | dict(row.changes)
            if model != "mfhca" or all(of_mfhca[name] == wanted[name] for name in _deciding(roles, wanted)):
                return (*row.published, f"{table.title.partition(':')[0]}: {_row_text(table, row)}")
    return None


def _deciding(roles: Sequence[str], settings: Mapping[str, Any]) -> list[str]:
    """Settings that the tables vary and that a model of these inputs looks at."""
    names = ["fusion"] * (len(roles) > 1)
    if "spectrogram" in roles:
        names += ["spectrogram_network"]
        names += ["channels", "rate"] * (settings["spectrogram_network"] == "mf")
    return names


def _row_text(table: Table, row: Row) -> str:
    """``Spec + Hubert with MF and HCA``, ``channels 16-32``, ``r 1/8``."""
    if table.name == "table2":
        there = [name for name, cell in zip(table.columns[1:], row.cells, strict=True) if cell == "✓"]
        return row.label + (f" with {' and '.join(there)}" if there else "")
    return row.label if table.name == "table1" else f"{table.columns[0]} {row.label}"
