"""What reaches the terminal: no secret of a URL, no control character, and an error nobody foresaw as one line.

Our own messages are redacted where they are made; this is the last look, which also covers what the libraries below
us log and warn of, and what a user's own code raises: values of the environment and of storage options that are called
a key, a token or a password are blotted out. A traceback may hold anything, so it is shown only when it is asked for.
"""

from __future__ import annotations

import errno
import io
import itertools
import logging
import os
import re
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import click

from rhostream import events
from rhostream.errors import Interrupted, RhostreamError, UsageError
from rhostream.inert import names_a_secret

TRACEBACK = "RHOSTREAM_TRACEBACK"
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>]+")
LEAST = 8  # letters of a secret: a shorter one is a word of any message
_HERE = Path(__file__).parent
LOG_FORMAT = "--log-format"


def clean(text: str) -> str:
    """The text with its URLs redacted, known secrets blotted out and everything but line ends that a terminal would
    obey as escapes.
    """
    text = _URL.sub(_redacted, text)
    for secret in _secrets():
        text = text.replace(secret, "***")
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def _redacted(match: re.Match[str]) -> str:
    from rhostream.storage import redact

    try:
        return redact(match[0])
    except ValueError:  # no URL after all, such as an IPv6 address that is never closed
        return match[0].partition("://")[0] + "://..."


def _secrets() -> Iterator[str]:
    """What the environment and the storage options hold by names of secrets."""
    storage = sys.modules.get("rhostream.storage.settings")  # who never opened a store has no options
    places: list[Mapping[str, Any]] = [os.environ]
    if storage is not None and storage._current is not None:
        places += storage._current.options.values()
    while places:
        for name, value in places.pop().items():
            if isinstance(value, Mapping):
                places.append(value)
            elif isinstance(value, str) and len(value) >= LEAST and names_a_secret(name):
                yield value


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """The message; a traceback is kept only where one was asked for."""
        if not wants_traceback():
            record.exc_info = record.exc_text = record.stack_info = None
        return clean(super().format(record))


def open_console(arguments: Sequence[str] = ()) -> None:
    """Log and warn to stderr, cleaned; in lines of JSON where the arguments of the command line ask for them, which is
    seen before they are understood: what is wrong with them is an event, too.
    """
    words = [*arguments]
    events.as_json = f"{LOG_FORMAT}=json" in words or (LOG_FORMAT, "json") in itertools.pairwise(words)
    events.verb = next((word for word in words if not word.startswith("-")), "")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(events.JsonLines(clean) if events.as_json else _Formatter("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    warnings.showwarning = _show_warning


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    say(f"warning: {message}", "warning", logging.WARNING)


def say(text: str, event: str = "message", level: int = logging.INFO, **fields: Any) -> None:
    """One message on stderr; `event` and `fields` are what it is to a program."""
    text = clean(text)
    if events.as_json:
        text = events.line(event, text.removeprefix("warning: "), level, **fields)
    click.echo(text, err=True)


def wants_traceback() -> bool:
    """Whether the user asked for tracebacks, which may hold secrets."""
    return os.environ.get(TRACEBACK, "") not in ("", "0")


def say_internal(error: BaseException) -> None:
    """An error nobody foresaw: its kind and where it came from, not its text, which may hold anything."""
    more = {}
    if wants_traceback() and events.as_json:
        more = {"traceback": "".join(traceback.format_exception(error))}
    elif wants_traceback():
        traceback.print_exception(error)
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if Path(f.filename).is_relative_to(_HERE)] or frames
    where = f" at {Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else ""
    say(
        f"internal error: {type(error).__name__}{where}; please report it. {TRACEBACK}=1 shows all of it, secrets "
        "included, so read it before you pass it on",
        "error",
        logging.ERROR,
        error=type(error).__name__,
        **more,
    )


def run(command: click.Command) -> None:
    """Run the command line: an error becomes one message on stderr and a documented exit code."""
    if not events.as_json:
        return _run(command)
    began, code = time.monotonic(), 0
    say(f"rhostream {events.verb}", "start", version=metadata.version("rhostream"), pid=os.getpid())
    try:
        _run(command)
    except SystemExit as exc:
        code = exc.code if isinstance(exc.code, int) else 0
        raise
    finally:
        say(f"exit code {code}", "end", exit_code=code, seconds=round(time.monotonic() - began, 3))


def _run(command: click.Command) -> None:
    try:
        command.main(standalone_mode=False)
    except click.exceptions.Exit as exc:
        raise SystemExit(exc.exit_code) from None
    except click.ClickException as exc:
        shown = io.StringIO()
        exc.show(shown)
        say(shown.getvalue().rstrip(), "error", logging.ERROR, error="UsageError", exit_code=2)
        raise SystemExit(2) from None
    except (KeyboardInterrupt, click.Abort) as exc:
        code = getattr(exc.__cause__ or exc, "exit_code", 130)
        say("interrupted; the same command resumes", "interrupted", exit_code=code)
        raise SystemExit(code) from None
    except BrokenPipeError:
        raise SystemExit(0) from None
    except Interrupted as exc:
        say(str(exc), "interrupted", exit_code=exc.exit_code)
        raise SystemExit(exc.exit_code) from None
    except RhostreamError as exc:
        text = f"{'usage' if exc.exit_code == UsageError.exit_code else 'error'}: {exc}"
        notes = "".join(f"\n  {note}" for note in getattr(exc, "__notes__", []))
        say(text + notes, "error", logging.ERROR, error=type(exc).__name__, exit_code=exc.exit_code)
        raise SystemExit(exc.exit_code) from None
    except OSError as exc:
        if exc.errno not in (errno.EMFILE, errno.ENFILE):
            say_internal(exc)
            raise SystemExit(1) from None
        say(
            "error: too many open files: raise the limit (`ulimit -n 4096`), or take fewer --workers and, in a "
            "stream, fewer --lanes",
            "error",
            logging.ERROR,
            error="OSError",
            exit_code=3,
        )
        raise SystemExit(3) from None
    except Exception as exc:
        say_internal(exc)
        raise SystemExit(1) from None
