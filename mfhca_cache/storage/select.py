"""``where=``: which utterances of a cache are meant.

    None                          every utterance that all the features hold
    "speaker != '1F'"             a condition on the columns of `Cache.utterances`, as `DataFrame.query` takes it
    lambda table: …               a function from that table to a boolean mask
    mask                          a boolean mask over that table: an array, or a Series with its index
    ["Ses01F_impro01_F000", …]    utterance ids, in this order

A condition, a function and a mask choose among the utterances that are there: those that were rejected or are not
extracted yet are left out, and choosing none at all is an error. An id is a demand: an id without the features is an
error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pandas as pd

from mfhca_cache.errors import CacheError

Where = str | Callable[[pd.DataFrame], Any] | Iterable[Any] | None


def choose_ids(table: pd.DataFrame, where: Where, available: list[str]) -> list[str]:
    """Utterance ids that ``where`` chooses.

    Args:
        table: `Cache.utterances`.
        where: see the module.
        available: ids of the utterances that all the features hold, in the table's order.

    Raises:
        CacheError: not a condition, a mask of another length or index, or nothing chosen by it.
    """
    if where is None:
        return available
    if isinstance(where, pd.DataFrame):
        raise CacheError("where: got a DataFrame; give its ids: where=table['utterance_id']")
    if isinstance(where, str):
        mask = _condition(table, where)
    elif callable(where):
        mask = _mask(table, where(table.copy()), "the function's result")
    else:
        values = where if isinstance(where, (pd.Series, np.ndarray)) else list(where)
        if not _is_boolean(values):
            return [str(name) for name in values]
        mask = _mask(table, values, "the mask")
    there = set(available)
    chosen = list(table.loc[mask, "utterance_id"])
    found = [name for name in chosen if name in there]
    if not found:
        what = f"where={where!r}" if isinstance(where, str) else "where"
        if chosen:
            raise CacheError(
                f"{what} chooses {len(chosen)} utterances, and none of them has the features: they were rejected or "
                "are not extracted yet; `mfhca extract` extracts what is missing"
            )
        raise CacheError(f"{what} chooses none of {len(table)} utterances; cache.utterances shows what there is")
    return found


def _condition(table: pd.DataFrame, text: str) -> np.ndarray:
    try:
        # The caller's variables are out of reach on purpose: what @name means must not depend on who calls whom.
        value = table.eval(text, engine="python", local_dict={}, global_dict={})
    except Exception as error:  # pandas raises whatever its parser meets
        hint = f"; one utterance is where=[{text!r}]" if text in set(table["utterance_id"]) else ""
        raise CacheError(
            f"where={text!r} is not a condition on the utterances ({error}){hint}; expected one on the columns "
            f"{', '.join(table.columns)}, such as \"speaker == '1F' and seconds < 5\""
        ) from error
    return _mask(table, value, f"where={text!r}")


def _mask(table: pd.DataFrame, value: Any, what: str) -> np.ndarray:
    """A boolean mask over the table, checked: bool (utterances,)."""
    if not _is_boolean(value) or np.shape(value) != (len(table),):
        got = f"{len(value)} values" if isinstance(value, (pd.Series, np.ndarray, list)) else type(value).__name__
        raise CacheError(f"{what}: got {got}; expected {len(table)} booleans, one for each row of cache.utterances")
    if isinstance(value, pd.Series):
        if not value.index.equals(table.index):
            raise CacheError(f"{what}: its index is not that of cache.utterances; make it from that table")
        return value.fillna(False).to_numpy(dtype=bool)
    return np.asarray(value, dtype=bool)


def _is_boolean(value: Any) -> bool:
    if isinstance(value, (pd.Series, np.ndarray)):
        return bool(pd.api.types.is_bool_dtype(value.dtype))
    return isinstance(value, list) and len(value) > 0 and all(isinstance(item, (bool, np.bool_)) for item in value)
