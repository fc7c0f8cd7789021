"""What can go wrong, as one small family.

Every message says what was got, what was expected and the likely fix, and names the file, row or id.
The command line prints it without a traceback and exits with status 1.
"""

from __future__ import annotations


class MfhcaError(Exception):
    """Base of every error that mfhca-cache raises on purpose."""


class LabelError(MfhcaError):
    """A class map or a label that is not known."""


class ManifestError(MfhcaError):
    """An utterance table that cannot be read, or rows that contradict each other."""


class CorpusError(MfhcaError):
    """A corpus folder that is missing, empty or of another corpus."""


class AudioError(MfhcaError):
    """One audio file that must not be used.

    Attributes:
        reason: a short fixed name for counting: ``truncated``, ``silence``, ``not-finite`` …
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class EncoderError(MfhcaError):
    """An encoder that cannot be found, loaded whole, or used on clips."""


class CacheError(MfhcaError):
    """A cache, shard or receipt that is missing, damaged or not to be trusted."""


class CacheMismatchError(CacheError):
    """What is asked for differs from what the cache was begun with; nothing was changed."""


class StaleShardError(CacheError):
    """A shard that was made from other audio or transcripts than the cache lists now; it is never read."""


class FoldError(MfhcaError):
    """A fold, speaker or protocol that the corpus does not have."""


class TrainingError(MfhcaError):
    """A model, preset or run that cannot be trained as asked."""


class ClusterError(MfhcaError):
    """A cluster of machines that cannot be reached, has no room, or whose nodes do not see what they need."""
