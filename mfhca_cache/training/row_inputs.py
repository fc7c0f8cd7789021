"""Which features of a cache a table's row is trained on; and where one is missing, the command that adds it."""

from __future__ import annotations

from dataclasses import dataclass

from mfhca_cache.errors import TrainingError
from mfhca_cache.storage.cache import Cache
from mfhca_cache.storage.command import adding_command, adding_encoder_command
from mfhca_cache.storage.layout import FeatureInfo
from mfhca_cache.training.encoders import encoder_family

#: Role of a table's row → the family of encoders that it means, as configurations call it, and how the paper does.
FAMILIES = {"hubert": ("hubert", "HuBERT"), "w2v2": ("wav2vec2", "wav2vec 2.0")}
#: The encoders of the paper, for commands that add them.
_CHECKPOINTS = {"hubert": "facebook/hubert-base-ls960", "w2v2": "facebook/wav2vec2-base"}
#: Kind of an acoustic feature → the usual one's name.
_ACOUSTIC = {"spectrogram": "spectrogram", "mfcc": "mfcc-40", "log-mel": "log-mel-128"}


@dataclass(frozen=True)
class Lack:
    """A feature that a cache does not have: what it is, and the `mfhca extract` that adds it."""

    what: str
    command: str


@dataclass(frozen=True)
class RowInputs:
    """Features for a row's roles.

    Attributes:
        features: names, in the order of the roles.
        lacks: what is not there.
        notes: where a feature is another than the paper's.
    """

    features: tuple[str, ...]
    lacks: tuple[Lack, ...]
    notes: tuple[str, ...]


def row_inputs(cache: Cache, roles: tuple[str, ...], hubert: str | None = None, w2v2: str | None = None) -> RowInputs:
    """The features that roles of `mfhca_cache.training.tables` mean in a cache.

    Args:
        hubert, w2v2: features to take for these families, whatever encoder made them; see `check_named`.

    Raises:
        TrainingError: several features of one family, so that one must be named.
    """
    named = {"hubert": hubert, "w2v2": w2v2}
    features: list[str] = []
    lacks: list[Lack] = []
    notes: list[str] = []
    for role in roles:
        if role in _ACOUSTIC:
            found, note = _acoustic(cache, role), ""
        elif role in FAMILIES:
            found, note = named[role] or _only(cache, role), ""
            if named[role] and encoder_family(cache.features[str(found)]) != FAMILIES[role][0]:
                note = f"{FAMILIES[role][1]} stands for {found}, as asked"
        else:
            found, note = _encoder(cache, role, named)
        if found is None:
            lacks.append(_lack(cache, role))
        else:
            features.append(found)
        notes += [note] if note else []
    return RowInputs(tuple(features), tuple(lacks), tuple(notes))


def check_named(cache: Cache, hubert: str | None, w2v2: str | None) -> None:
    """Check the features that were named for the paper's two encoders.

    Raises:
        TrainingError: the cache has no such frames of an encoder, or both are one.
    """
    for option, name in (("--hubert", hubert), ("--w2v2", w2v2)):
        info = cache.features.get(name or "")
        if name is not None and (info is None or info.kind != "encoder" or not _is_sequence(info)):
            have = [item for item in cache.encoders() if _is_sequence(cache.features[item])]
            raise TrainingError(
                f"{option} {name}: {cache.path} has no such frames of an encoder; expected one of: "
                f"{', '.join(have) or 'none yet, `mfhca extract` adds one'}"
            )
    if hubert is not None and hubert == w2v2:
        raise TrainingError(f"--hubert and --w2v2 both name {hubert}; expected the features of two encoders")


def _encoder(cache: Cache, role: str, named: dict[str, str | None]) -> tuple[str | None, str]:
    """A feature for ``encoder``, ``baseline`` or ``layers``, and what must be said of it."""
    first, second = ("w2v2", "hubert") if role == "baseline" else ("hubert", "w2v2")
    found = named[first] or _only(cache, first) or named[second] or _only(cache, second) or _only(cache, None)
    if found is None:
        return None, ""
    note = ""
    if encoder_family(cache.features[found]) != FAMILIES[first][0]:
        note = f"reads {found}; published with {FAMILIES[first][1]}"
    if role == "layers":
        weights = cache.features[found].settings.get("weights_sha256")
        every = [
            name
            for name, info in sorted(cache.features.items())
            if info.kind == "encoder" and len(info.shape) == 3 and info.settings.get("weights_sha256") == weights
        ]
        if len(every) != 1:
            return found, f"reads the last layer alone; all layers come with `{_layers_command(cache, found)}`"
        found, note = every[0], ""
    return found, note


def _only(cache: Cache, family: str | None) -> str | None:
    """The one feature of (frames, width) of a family's encoder, or of any; the last layer before others."""
    found = [
        name
        for name in cache.encoders()
        if _is_sequence(cache.features[name])
        and (family is None or encoder_family(cache.features[name]) == FAMILIES[family][0])
    ]
    plain = [
        name
        for name in found
        if cache.features[name].settings.get("layers", "last") == "last"
        and "precision" not in cache.features[name].settings
    ]
    found = plain if len(plain) == 1 else found
    if len(found) > 1:
        what, option = (
            ("encoders", "--hubert") if family is None else (f"{FAMILIES[family][1]} encoders", f"--{family}")
        )
        raise TrainingError(
            f"{cache.path} has features of several {what}: {', '.join(found)}. Name one, such as {option} {found[0]}"
        )
    return found[0] if found else None


def _is_sequence(info: FeatureInfo) -> bool:
    return info.frames is not None and len(info.shape) == 2


def _acoustic(cache: Cache, kind: str) -> str | None:
    """The feature of a kind: the usual one, or the only one."""
    found = [name for name, info in sorted(cache.features.items()) if info.kind == kind]
    usual = _ACOUSTIC[kind]
    if usual in found or not found:
        return usual if found else None
    if len(found) > 1:
        raise TrainingError(f"{cache.path} has several of kind {kind}: {', '.join(found)}; expected {usual}, or one")
    return found[0]


def _lack(cache: Cache, role: str) -> Lack:
    if role in _ACOUSTIC:
        return Lack(f"no feature {_ACOUSTIC[role]}", adding_command(cache.path, cache.plan, role))
    family = role if role in FAMILIES else "w2v2" if role == "baseline" else "hubert"
    command = adding_encoder_command(cache.path, cache.plan, _CHECKPOINTS[family])
    return Lack(f"no features of a {FAMILIES[family][1]} encoder", command)


def _layers_command(cache: Cache, feature: str) -> str:
    source = cache.features[feature].source
    revision = ["--revision", str(source["revision"])] if source.get("revision") else []
    name = str(source.get("name", "NAME"))
    return adding_encoder_command(cache.path, cache.plan, name, *revision, "--layers", "all")
