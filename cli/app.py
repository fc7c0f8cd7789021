"""The `mfhca` group: its commands, loaded when called, and the way that errors leave it."""

from __future__ import annotations

import errno
import importlib
import signal
import sys
from typing import Any

import click

from mfhca_cache.errors import MfhcaError

#: In the order of use. Their help is written here too, so that `mfhca --help` need not load torch to show it.
COMMANDS = {
    "demo": "Generate a small corpus and take it the whole way: manifest, cache, ten folds, report.",
    "manifest": "Read the corpus in folder ROOT and write its utterance table.",
    "plan": "Say what an extraction would take, without writing anything.",
    "extract": "Extract what a corpus's cache does not hold yet.",
    "cache": "List, verify, repair, merge and export caches.",
    "train": "Train folds from a cache, and show the run's scores.",
    "ablate": "Train the rows of one of the paper's tables on a cache, and show the table.",
    "gap": "Train one model under every protocol, and show the size of the optimism.",
    "report": "Show the scores of the run in folder RUN, and write its page.",
    "compare": "Compare two runs on the same test utterances, and say what can be concluded.",
    "folds": "Show how FOLDS cut the corpus in MANIFEST, or write them for other toolkits.",
    "leak-check": "Count what the test sets of FOLDS share with training.",
}


#: Exit statuses that shells and schedulers know: 128 + the signal's number.
INTERRUPTED, TERMINATED = 130, 143


class _Group(click.Group):
    """Loads a command's module when the command is called, and turns known errors into a message and status 1."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of use."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """The command, or None for click to complain."""
        if name not in COMMANDS:
            return None
        module = name.replace("-", "_")
        command: click.Command = getattr(importlib.import_module(f".{module}", __package__), module)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Names and short help, without loading any command."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def make_context(self, *args: Any, **options: Any) -> click.Context:
        """Read the arguments; Ctrl-C while they are read has a status that shells know, which click's own has not."""
        try:
            return super().make_context(*args, **options)
        except KeyboardInterrupt:
            click.echo("\nStopped before anything was done.", err=True)
            raise click.exceptions.Exit(INTERRUPTED) from None

    def invoke(self, ctx: click.Context) -> Any:
        """Run, and let no known error end in a traceback."""
        try:
            _stop_on_sigterm()
            return super().invoke(ctx)
        except MfhcaError as error:
            click.echo(f"Error: {error}", err=True)
            ctx.exit(1)
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise  # The reader of our output has gone; click ends quietly.
            click.echo(f"Error: {error}", err=True)
            ctx.exit(1)
        except MemoryError:
            click.echo("Error: not enough memory for this; close other programs, or take a smaller part", err=True)
            ctx.exit(1)
        except KeyboardInterrupt as stop:
            _be_deaf()
            click.echo("\nStopped. What was finished is kept; the same command goes on from there.", err=True)
            ctx.exit(TERMINATED if isinstance(stop, _Terminated) else INTERRUPTED)


class _Terminated(KeyboardInterrupt):
    """SIGTERM came: from a scheduler whose time is up, or from `kill`."""


def _stop_on_sigterm() -> None:
    """Let SIGTERM unwind like Ctrl-C, so that half-written files are removed."""

    def stop(*_: object) -> None:
        raise _Terminated

    if sys.platform != "win32":
        signal.signal(signal.SIGTERM, stop)


def _be_deaf() -> None:
    """Once it is stopping, an impatient second Ctrl-C must not end it in a traceback."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="mfhca-cache", prog_name="mfhca")
def mfhca() -> None:
    """Extract frozen speech features once; train and compare emotion recognition from them ever after.

    \b
    The usual path:
        mfhca manifest iemocap /data/IEMOCAP_full_release
        mfhca extract
        mfhca train --fold all
        mfhca report runs/NAME

    \b
    Example, on a small generated corpus, in two minutes:
        mfhca demo
    """
