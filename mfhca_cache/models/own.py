"""A model of the reader's own, ``my_package.my_module:MyModel``: found, made, called, its errors told in its own lines.

    class MyModel(nn.Module):
        def __init__(self, shapes: dict[str, tuple[int, ...]], n_classes: int): ...
        def forward(self, features: dict[str, Tensor], masks: dict[str, Tensor]) -> Tensor: ...

``shapes`` and ``features`` are by the names of the features that were asked for, in their order: the shape of one clip,
and float32 (B, *shape). ``masks`` is bool (B, frames), True where a frame is signal, for each feature that has frames.
The result is logits (B, n_classes). docs/own-model.md says all of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import inspect
import os
import traceback
import warnings
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from mfhca_cache.errors import TrainingError

#: Names in a checkpoint that are not the model's.
SCALING_KEYS = ("scaling.mean", "scaling.std")
#: Whose frames are no help in finding the reader's mistake.
_NOT_THEIRS = tuple(
    str(Path(str(file)).parent) + os.sep for file in (Path(__file__).parent, torch.__file__, importlib.__file__)
)
_MOST_LINES = 8
_seen: weakref.WeakKeyDictionary[type, str] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class ModelSource:
    """A class that was found: its name as asked for, the class, its file and that file's SHA-256 (64 hex digits)."""

    name: str
    model_class: type[nn.Module]
    file: Path
    sha256: str


@dataclass(frozen=True)
class OwnSettings:
    """What the class is made with: feature → shape of one clip, and the number of logits."""

    shapes: dict[str, tuple[int, ...]]
    n_classes: int


class OwnModel(nn.Module):
    """The reader's module, its output checked and its errors told. A checkpoint has the module's own names."""

    def __init__(self, name: str, module: nn.Module, n_classes: int) -> None:
        super().__init__()
        self.name, self.module, self.n_classes = name, module, n_classes

    def forward(self, features: dict[str, Tensor], masks: dict[str, Tensor]) -> Tensor:
        """Features and masks of B clips → logits, float32 (B, n_classes).

        Raises:
            TrainingError: the module failed, or gave something else.
        """
        clips = len(next(iter(features.values())))
        with told(self.name, "in forward(features, masks)"):
            logits = self.module(features, masks)
        if not isinstance(logits, Tensor) or tuple(logits.shape) != (clips, self.n_classes):
            got = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
            raise TrainingError(
                f"model {self.name}: forward gave {got}; expected logits of shape ({clips}, {self.n_classes}), "
                f"a row a clip and a column a class{_where(type(self.module).forward)}"
            )
        return logits.float()

    def state_dict(self, *args: Any, **options: Any) -> Any:
        """The module's."""
        return self.module.state_dict(*args, **options)

    def load_state_dict(self, *args: Any, **options: Any) -> Any:
        """The module's."""
        return self.module.load_state_dict(*args, **options)


def find_model(name: str) -> ModelSource:
    """Import the class that ``module:Class`` names.

    Raises:
        TrainingError: no such module or class, no nn.Module, the module's own error, or a file that changed after it
            was imported.
    """
    module_name, _, class_name = name.partition(":")
    parts = module_name.removesuffix(".py").split(".")
    is_file = module_name.endswith(".py")
    if is_file or not class_name.isidentifier() or not all(part.isidentifier() for part in parts):
        hint = f", so {'.'.join(parts).strip('./').replace('/', '.')}:{class_name}" if is_file else ""
        raise TrainingError(
            f"model {name!r}: expected MODULE:CLASS, the module as Python imports it{hint}; for example "
            "my_package.my_module:MyModel"
        )
    try:
        with told(name, "when it was imported"):
            module = importlib.import_module(module_name)
    except TrainingError as error:
        missing = getattr(error.__cause__, "name", None) if isinstance(error.__cause__, ModuleNotFoundError) else None
        if missing and f"{module_name}.".startswith(f"{missing}."):
            raise TrainingError(
                f"model {name}: there is no module {missing!r} in the current folder ({Path.cwd()}) or among the "
                "installed packages"
            ) from None
        raise
    found = getattr(module, class_name, None)
    if not isinstance(found, type) or not issubclass(found, nn.Module):
        classes = {key: value for key, value in vars(module).items() if isinstance(value, type)}
        here = [key for key, value in classes.items() if issubclass(value, nn.Module) and _is_theirs(value)]
        got = f"a {class_name!r} that is no nn.Module class" if hasattr(module, class_name) else f"no {class_name!r}"
        raise TrainingError(
            f"model {name}: {getattr(module, '__file__', None) or module_name} has {got}; "
            f"its nn.Module classes: {', '.join(here) or 'none'}"
        )
    return source_of(found, name)


def source_of(model_class: type[nn.Module], name: str | None = None) -> ModelSource:
    """The file that a class was written in, and its digest.

    Raises:
        TrainingError: the class is in no file, or the file changed after it was imported.
    """
    name = name or f"{model_class.__module__}:{model_class.__qualname__}"
    try:
        file = Path(inspect.getsourcefile(model_class) or "")
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
    except (OSError, TypeError) as error:
        raise TrainingError(
            f"model {name}: the class is in no file that can be read; put it into a module, so that a result can say "
            "which source it comes from"
        ) from error
    if _seen.setdefault(model_class, digest) != digest:
        raise TrainingError(
            f"model {name}: {file} changed after this Python imported it; restart Python or importlib.reload the module"
        )
    return ModelSource(name, model_class, file, digest)


def build_own(source: ModelSource, settings: OwnSettings) -> OwnModel:
    """The class, made from torch's random state.

    Raises:
        TrainingError: its own error; nothing to train; or a state that a checkpoint cannot hold.
    """
    call = f"{source.model_class.__name__}(shapes={settings.shapes}, n_classes={settings.n_classes})"
    with told(source.name, f"in {call}"):
        module = source.model_class(shapes=dict(settings.shapes), n_classes=settings.n_classes)
        parameters, state = list(module.parameters()), module.state_dict()
    if any(is_lazy(parameter) for parameter in parameters):
        problem = "it has lazy layers, whose sizes are not known yet; give them sizes from shapes"
    elif not any(parameter.requires_grad for parameter in parameters):
        problem = "it has no parameters to train"
    elif other := [key for key, value in state.items() if not isinstance(value, Tensor)]:
        problem = f"its state_dict holds {other[0]!r}, which is no tensor, and a checkpoint keeps tensors alone"
    elif taken := sorted(set(state) & set(SCALING_KEYS)):
        problem = f"the name {taken[0]!r} of its state_dict is the spectrogram's scaling in a checkpoint; rename it"
    else:
        return OwnModel(source.name, module, settings.n_classes)
    raise TrainingError(f"model {source.name}: {problem}{_where(source.model_class.__init__)}")


def rebuild_own(model_class: type[nn.Module], settings: Mapping[str, Any], sha256: str) -> nn.Module:
    """The reader's bare module, made as a record's ``model_settings`` say, with fresh weights.

    Args:
        sha256: of the file that the class was trained from. Another file gets a warning: its weights may still fit.
    """
    source = source_of(model_class)
    if source.sha256 != sha256:
        warnings.warn(
            f"{source.file} is not the file that this model was trained from (its SHA-256 was {sha256[:12]}…); "
            "it may compute something else",
            stacklevel=4,
        )
    shapes = {name: tuple(shape) for name, shape in settings["shapes"].items()}
    return build_own(source, OwnSettings(shapes, int(settings["n_classes"]))).module


@contextlib.contextmanager
def told(name: str, during: str) -> Iterator[None]:
    """Turn an error of the reader's code into a TrainingError that shows the reader's lines and no others."""
    try:
        yield
    except (Exception, SystemExit) as error:
        trace = traceback.extract_tb(error.__traceback__)
        theirs = [line for line in trace if not line.filename.startswith((*_NOT_THEIRS, "<frozen"))]
        lines = "".join(traceback.format_list(theirs[-_MOST_LINES:]))
        what = "".join(traceback.format_exception_only(error)).strip()
        hint = "" if lines or isinstance(error, SyntaxError) else "\ndocs/own-model.md says what a model must have"
        raise TrainingError(f"model {name} failed {during}:\n{lines}{what}{hint}") from error


def told_of(model: nn.Module, during: str) -> contextlib.AbstractContextManager[None]:
    """`told` for a model of the reader's own; nothing for ours."""
    return told(model.name, during) if isinstance(model, OwnModel) else contextlib.nullcontext()


def _is_theirs(model_class: type) -> bool:
    return model_class.__module__.split(".")[0] != "torch"


def _where(function: Any) -> str:
    code = getattr(function, "__code__", None)
    return f" ({code.co_filename}, line {code.co_firstlineno})" if code else ""
