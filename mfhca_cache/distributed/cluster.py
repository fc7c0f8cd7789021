"""The one place that knows Ray: a cluster joined or started, and small tasks run on it until each is done or lost.

A task is a function of this package with paths and settings for arguments; its answer is a small dict. What it makes
lies on storage that every node sees, so a task whose worker dies is simply run again.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import platform
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from mfhca_cache import errors
from mfhca_cache.device import allowed_cores
from mfhca_cache.errors import ClusterError, MfhcaError
from mfhca_cache.storage.shard import file_sha256

#: How often a task is run again whose worker has died.
RETRIES = 3
_ANSWER_SECONDS = 5.0
_STOP_SECONDS = 15.0
#: Only paths and small dicts travel.
_OBJECT_STORE_BYTES = 128 * 2**20
#: How an HTTP/2 client, and so Ray, says hello: the preface and an empty frame of settings.
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))

Answer = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """One call of a function on some node.

    Attributes:
        name: what a message calls it.
        arguments: paths and settings.
    """

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Node:
    """CPUs and GPUs that a node offers to tasks."""

    cpus: int
    gpus: int


class Cluster:
    """A cluster that this process has joined; made by `join_cluster`."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        found = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        self.nodes = [Node(int(item.get("CPU", 0)), int(item.get("GPU", 0))) for item in found if item.get("CPU", 0)]
        if not self.nodes:
            raise ClusterError(
                "no node of the Ray cluster offers a CPU; start one with `ray start --address HOST:PORT`"
            )

    def device(self, asked: str) -> str:
        """``auto`` → cuda where a node has a GPU, else cpu.

        Raises:
            ClusterError: cuda, and no node has one.
        """
        some = any(node.gpus for node in self.nodes)
        if asked == "cuda" and not some:
            raise ClusterError("device cuda: no node of the Ray cluster has a GPU; use --device cpu")
        return asked if asked != "auto" else "cuda" if some else "cpu"

    def cpus_of_task(self, threads: int, gpu: bool) -> int:
        """CPUs to ask for, for a task of so many threads: never more than a node (or its share for a GPU) has."""
        if gpu:
            return max(1, min(threads, *(node.cpus // node.gpus for node in self.nodes if node.gpus)))
        return max(1, min(threads, max(node.cpus for node in self.nodes)))

    def slots(self, cpus: int, gpu: bool) -> int:
        """How many such tasks run at once."""
        return max(1, sum(min(node.cpus // cpus, node.gpus if gpu else node.cpus) for node in self.nodes))

    def run(
        self,
        function: Callable[..., Answer],
        tasks: list[Task],
        *,
        cpus: int,
        gpu: bool = False,
        tell: Callable[[dict[str, Answer]], None] = lambda _: None,
    ) -> tuple[dict[str, Answer], dict[str, str]]:
        """Run every task, again where its worker dies; answers by name, and why what is lost was lost.

        Args:
            function: of a module of this package, so that a node finds it by its name.
            cpus, gpu: what a task needs.
            tell: called about once a second with the answers so far.

        Raises:
            MfhcaError: the first that a task raised; the others are stopped, and keep what they have committed.
        """
        ray = self._ray
        remote = ray.remote(num_cpus=cpus, num_gpus=int(gpu), max_retries=RETRIES)(_call)
        surroundings = {"folder": os.getcwd(), "version": metadata.version("mfhca-cache")}  # noqa: PTH109
        waiting = {remote.remote(function, task.arguments, **surroundings): task.name for task in tasks}
        answers: dict[str, Answer] = {}
        lost: dict[str, str] = {}
        try:
            while waiting:
                ready, _ = ray.wait(list(waiting), num_returns=len(waiting), timeout=1.0)
                for reference in ready:
                    name = waiting.pop(reference)
                    try:
                        answers[name] = _opened(ray.get(reference))
                    except ray.exceptions.RayTaskError as error:
                        raise _unexpected(name, error) from error
                    except ray.exceptions.RayError as error:
                        lost[name] = str(error).strip().splitlines()[0]
                tell(answers)
        finally:
            self._stop(list(waiting))
        return answers, lost

    def _stop(self, references: list[Any]) -> None:
        """Cancel tasks: first so that they clear up behind themselves, then by force."""
        for force in (False, True):
            for reference in references:
                self._ray.cancel(reference, force=force)
            if references and not force:
                _, references = self._ray.wait(references, num_returns=len(references), timeout=_STOP_SECONDS)


@contextlib.contextmanager
def join_cluster(address: str | None) -> Iterator[Cluster]:
    """Join the cluster at ``HOST:PORT`` (``auto``: the one that this machine is a node of); None starts one here.

    A process that has called ``ray.init`` itself stays with that cluster.

    Raises:
        ClusterError: Ray is not installed, or there is no such cluster.
    """
    ray = _import_ray()
    if ray.is_initialized():
        yield Cluster(ray)
        return
    if address is not None:
        _check_address(address)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    cores = allowed_cores()
    own = {"num_cpus": cores, "include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES}
    try:
        ray.init(
            address=address or "local",
            log_to_driver=False,
            logging_level=logging.CRITICAL,
            **({} if address else own),
        )
        _keep_handlers(handlers)
        _keep_quiet()
        yield Cluster(ray)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        if ray.is_initialized():
            raise
        raise ClusterError(
            f"Ray cluster {address or 'of this machine'}: could not be joined ({str(error).strip().splitlines()[0]}); "
            "this machine must be one of its nodes: `ray start --address HOST:PORT` makes it one"
        ) from error
    finally:
        ray.shutdown()
        _keep_handlers(handlers)


def _import_ray() -> Any:
    # Ray must neither report its use nor explain itself on the terminal; it reads these when it is imported.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        return importlib.import_module("ray")
    except ModuleNotFoundError as error:
        raise ClusterError(f"--engine ray needs Ray ({error}); run pip install 'mfhca-cache[ray]'") from error


def _keep_handlers(handlers: dict[signal.Signals, Any]) -> None:
    """Put back how this process answers signals: Ray replaces it, and would end without a word."""
    if threading.current_thread() is threading.main_thread():
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _keep_quiet() -> None:
    """Keep Ray from printing every dead worker on stdout, among the JSON; what matters is told by `Cluster.run`."""
    worker: Any = importlib.import_module("ray._private.worker")
    if hasattr(worker, "print_to_stdstream"):
        worker.print_to_stdstream = lambda *_, **__: None


def _check_address(address: str) -> None:
    """Refuse an address at which nothing answers as Ray does; Ray itself would try for minutes.

    Raises:
        ClusterError: it is none, or nothing answers there.
    """
    if address == "auto":
        return
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536 or "/" in host:
        raise ClusterError(f"--address {address!r}: expected HOST:PORT of the cluster's head node, or auto")
    fix = "is the cluster up (`ray start --head` prints its address), and is this machine one of its nodes?"
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_SECONDS) as connection:
            connection.settimeout(_ANSWER_SECONDS)
            connection.sendall(_HELLO)
            answer = connection.recv(9)
    except OSError as error:
        raise ClusterError(f"--address {address}: nothing answers there ({error}); {fix}") from error
    if len(answer) < 9 or answer[3] != 4:
        raise ClusterError(f"--address {address}: what answers there is not Ray; {fix}")


def check_shared(path: Path, sha256: str) -> None:
    """Check on a node that a file is there, and the one that the command sees.

    Raises:
        ClusterError: another file or none; names the node and the path.
    """
    found = file_sha256(path) if path.is_file() else None
    if found != sha256:
        what = "is missing" if found is None else "is another file"
        raise ClusterError(
            f"node {platform.node()}: {path} {what} there; expected the file that the command on its own node sees. "
            "Caches, runs and corpora must lie on storage that every node has under the same path"
        )


def _call(function: Callable[..., Answer], arguments: dict[str, Any], *, folder: str, version: str) -> Answer:
    """What runs on a node. Known errors come back as words: an exception would bring the node's traceback with it."""
    try:
        if (here := metadata.version("mfhca-cache")) != version:
            raise ClusterError(f"node {platform.node()} has mfhca-cache {here}; expected {version}, as the command has")
        with contextlib.suppress(OSError):
            os.chdir(folder)  # Names such as --encoder DIR are meant from where the command was given.
        return function(**arguments)
    except (MfhcaError, OSError, MemoryError) as error:
        message = str(error) or "not enough memory for this"
        return {"error": message, "kind": type(error).__name__, "node": platform.node()}


def _opened(answer: Answer) -> Answer:
    """The answer; or the known error in it, raised here."""
    if "error" not in answer:
        return answer
    kind = getattr(errors, answer["kind"], ClusterError)
    node = "" if answer["node"] in answer["error"] else f" (on node {answer['node']})"
    raise (kind if kind is not errors.AudioError else MfhcaError)(f"{answer['error']}{node}")


def _unexpected(name: str, error: Exception) -> Exception:
    """An error that no task should raise: a node without this package, said so, or a fault of ours, as it is."""
    text = str(error)
    if "failed to import" in text or "No module named" in text:
        last = next((line for line in reversed(text.splitlines()) if line.strip()), "").strip()
        version = metadata.version("mfhca-cache")
        return ClusterError(
            f"{name}: a node cannot run it ({last}); every node needs mfhca-cache {version} in the same Python version"
        )
    return error
