"""One run of an extraction: which shards it takes, in which order, and who else works on them.

Each task's shards are locked before its audio is decoded, and each lock is let go of once its shard is committed.
Shards that another run holds are left, and come again at the end: then a run that holds nothing waits for the first of
them, so that two runs never wait for each other.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from filelock import Timeout

from mfhca_cache.errors import EncoderError
from mfhca_cache.extraction import overlap
from mfhca_cache.extraction.build import Made, Tools, make_clips, make_texts, publish_made
from mfhca_cache.extraction.decode import ClipRun, DecodedClips, Room
from mfhca_cache.extraction.overlap import Helpers
from mfhca_cache.extraction.processes import Crew
from mfhca_cache.extraction.work import Task, is_done
from mfhca_cache.progress import Progress, ProgressCallback
from mfhca_cache.storage.commit import settle
from mfhca_cache.storage.layout import FeatureInfo, Plan, ShardRange
from mfhca_cache.storage.publish import CacheLock, lock

#: Seconds between two looks at what else goes on while another run's shard is waited for.
_PATIENCE = 0.5


@dataclass
class _Begun:
    """A task whose shards are locked and whose audio, if it needs any, is being decoded.

    Attributes:
        task: what is to be done of it.
        locks: by feature and shard. Taken and let go of on one thread, as a lock is its thread's.
        committed: those whose shards the writer has committed.
        clips: waits for the audio.
        counts: with it, its clips are done; otherwise once the shards that another run holds are.
    """

    task: Task
    locks: dict[tuple[str, str], CacheLock] = field(default_factory=dict)
    committed: deque[tuple[str, str]] = field(default_factory=deque)
    clips: Callable[[], DecodedClips] | None = None
    counts: bool = True

    def let_go(self, everything: bool = False) -> None:
        """Unlock what is committed, or everything."""
        for key in [*self.locks] if everything else [self.committed.popleft() for _ in range(len(self.committed))]:
            self.locks.pop(key).release()


@dataclass
class Run:
    """What one run carries from shard to shard, and what it has done.

    Attributes:
        folder, plan: the cache's.
        tools: what features are computed with.
        progress: called on the caller's thread.
        retry: utterances whose shards are made again.
        root: the corpus folder.
        crew: other processes that share this run's work, or None.
        new_clips, new_texts, new_shards, bytes_written: what it has committed.
    """

    folder: Path
    plan: Plan
    tools: Tools
    progress: ProgressCallback
    retry: set[str] = field(default_factory=set)
    root: Path = Path()
    crew: Crew | None = None
    unit: str = "clips"
    total: int = 0
    done: int = 0
    resumed: int = 0
    elsewhere: int = 0
    new_clips: int = 0
    new_texts: int = 0
    new_shards: int = 0
    bytes_written: int = 0
    _locked: list[_Begun] = field(default_factory=list)
    _helpers: Helpers | None = None

    def work(self, tasks: list[Task], total: int) -> None:
        """Build every task's shards; those that another run holds, after it has let go of them.

        Args:
            tasks: all of clips, or all of utterances.
            total: clips or utterances that the run answers for.
        """
        if not tasks:
            return
        self.unit, self.elsewhere = f"{tasks[0].per}s", 0
        self.done = self.resumed = total - len({n for task in tasks for n in range(task.first, task.stop)})
        # Features whose shards differ in length go over the same clips at different times.
        self.total = self.resumed + sum(task.stop - task.first for task in tasks)
        devices = {str(info.engine["device"]) for task in tasks for info, _ in task.shards}
        threads = max(overlap.decoders(device) for device in devices)
        while tasks := self._pass(tasks, threads):
            # Nothing is held here. Once the first is free, or done, the others may be too.
            self._pass(tasks[:1], threads, patient=True)
            tasks = tasks[1:]
        self._tell("writing", 0)

    def finish(self) -> list[str]:
        """Wait for the crew, if there is one, and count what it did; notes on what became of it."""
        if self.crew is None:
            return []
        reports, notes = self.crew.finish(lambda: self._tell("waiting for the other processes", 0))
        for report in reports:
            self.new_clips += report.new_clips
            self.new_texts += report.new_texts
            self.new_shards += report.new_shards
            self.bytes_written += report.bytes_written
        self.crew = None
        self.done = self.total
        self._tell("writing", 0)
        return [*dict.fromkeys(note for report in reports for note in report.notes), *notes]

    def _pass(self, tasks: list[Task], threads: int, patient: bool = False) -> list[Task]:
        """Build what no other run holds of the tasks, or wait for it; what is left."""
        left: list[Task] = []
        ahead: deque[_Begun] = deque()
        room = Room()
        try:
            with Helpers(threads) as helpers:
                self._helpers = helpers
                for task in tasks:
                    begun = _Begun(task)
                    self._locked = [*(item for item in self._locked if item.locks), begun]
                    self._take(begun, patient, left)
                    if begun.task.shards:
                        self._decode(begun, helpers, room)
                        ahead.append(begun)
                    while len(ahead) > overlap.AHEAD:
                        self._build(ahead.popleft(), helpers)
                while ahead:
                    self._build(ahead.popleft(), helpers)
        finally:
            # No thread of ours writes any more.
            for begun in self._locked:
                begun.let_go(everything=True)
            self._locked, self._helpers = [], None
        return left

    def _take(self, begun: _Begun, patient: bool, left: list[Task]) -> None:
        """Lock those of a task's shards that no other run holds (or all of them, waiting), and clear leftovers."""
        task, todo, held = begun.task, [], []
        for info, shard in task.shards:
            key = (info.name, shard.name)
            guard = lock(self.folder, f"{info.name}.{shard.name}")
            if not self._acquire(guard, patient):
                held.append((info, shard))
                continue
            begun.locks[key] = guard
            settle(self.folder / info.name, shard.name)
            # Another run may have published it between the search and the lock.
            if is_done(self.folder, self.plan, info, shard, self.retry):
                begun.committed.append(key)
            else:
                todo.append((info, shard))
        begun.let_go()
        begun.task = replace(task, shards=tuple(todo))
        if held:
            left.append(replace(task, shards=tuple(held)))
        begun.counts = not held
        if not held and not todo:
            self.elsewhere += task.stop - task.first
            self.done += task.stop - task.first

    def _acquire(self, guard: CacheLock, patient: bool) -> bool:
        while True:
            with contextlib.suppress(Timeout):
                guard.acquire(timeout=_PATIENCE if patient else 0)
                return True
            if not patient:
                return False
            self._tell("waiting for another run", 0)

    def _decode(self, begun: _Begun, helpers: Helpers, room: Room) -> None:
        task = begun.task
        if task.per == "utterance":
            return
        spectrogram = self.tools.spec.spectrogram
        emphasis = spectrogram.pre_emphasis if spectrogram else 0.0
        run = ClipRun(self.plan, self.root, task.first, task.stop, emphasis, room, helpers.stopping)
        # Several parts a thread, so that one long recording does not keep all others waiting.
        parts = helpers.decode(run.parts(4 * helpers.threads))
        begun.clips = lambda: run.joined(parts())

    def _build(self, begun: _Begun, helpers: Helpers) -> None:
        """Compute a task's shards, and hand each to the writer with its lock."""
        task, clips = begun.task, None
        if begun.clips is not None:
            self._tell("decoding", 0)
            clips, begun.clips = begun.clips(), None
            if clips.unreachable:
                begun.let_go(everything=True)
                self.done += (task.stop - task.first) * begun.counts
                return
        last = task.shards[-1][1]
        for info, shard in task.shards:
            if clips is not None:
                made = make_clips(info, clips, self.tools, self._tell)
            elif self.tools.text_encoder is not None:
                self._tell(info.name, 0)
                made = make_texts(info, self.plan, shard, self.tools.text_encoder)
            else:
                raise EncoderError(f"{info.name}: its encoder was not loaded")
            self._tell("writing", task.stop - task.first if shard is last else 0)
            counted = len(made.numbers) if info.per == "clip" and shard is last else 0
            helpers.write(made.data.nbytes, partial(self._commit, begun, info, shard, made, counted))
            del made
        self.done += (task.stop - task.first) * begun.counts

    def _commit(self, begun: _Begun, info: FeatureInfo, shard: ShardRange, made: Made, clips: int) -> None:
        """Publish a shard. On the writer's thread."""
        self.bytes_written += publish_made(self.folder, info, shard, made)
        self.new_shards += 1
        self.new_clips += clips
        self.new_texts += shard.stop - shard.first if info.per == "utterance" else 0
        begun.committed.append((info.name, shard.name))

    def _tell(self, stage: str, done: int) -> None:
        if self._helpers is not None:
            self._helpers.check()
        for begun in self._locked:
            begun.let_go()
        done, written, elsewhere = self.done + done, self.bytes_written, self.elsewhere
        if self.crew is not None:
            self.crew.check()
            # Much of what was done elsewhere was done by the crew, which counts it itself.
            done = min(self.total, done - elsewhere + self.crew.done(self.unit))
            written, elsewhere = written + self.crew.bytes_written, 0
        self.progress(Progress(stage, done, self.total, self.unit, self.resumed, written, elsewhere=elsewhere))
