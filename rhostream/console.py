"""What reaches the terminal: no secret of a URL, no control character, and an error nobody foresaw as one line.

Our own messages are redacted where they are made; this is the last look, which also covers what the libraries below
us log and warn of, and what a user's own code raises: values of the environment and of storage options that are called
a key, a token or a password are blotted out. A traceback may hold anything, so it is shown only when it is asked for.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from rhostream.errors import Interrupted, RhostreamError, UsageError
from rhostream.inert import names_a_secret

TRACEBACK = "RHOSTREAM_TRACEBACK"
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>]+")
LEAST = 8  # letters of a secret: a shorter one is a word of any message
_HERE = Path(__file__).parent


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


def open_console() -> None:
    """Log and warn to stderr, cleaned."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    warnings.showwarning = _show_warning


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    say(f"warning: {message}")


def say(text: str) -> None:
    """One message on stderr."""
    click.echo(clean(text), err=True)


def wants_traceback() -> bool:
    """Whether the user asked for tracebacks, which may hold secrets."""
    return os.environ.get(TRACEBACK, "") not in ("", "0")


def say_internal(error: BaseException) -> None:
    """An error nobody foresaw: its kind and where it came from, not its text, which may hold anything."""
    if wants_traceback():
        traceback.print_exception(error)
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if Path(f.filename).is_relative_to(_HERE)] or frames
    where = f" at {Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else ""
    say(
        f"internal error: {type(error).__name__}{where}; please report it. {TRACEBACK}=1 shows all of it, secrets "
        "included, so read it before you pass it on"
    )


def run(command: click.Command) -> None:
    """Run the command line: an error becomes one message on stderr and a documented exit code."""
    try:
        command.main(standalone_mode=False)
    except click.exceptions.Exit as exc:
        raise SystemExit(exc.exit_code) from None
    except click.ClickException as exc:
        shown = io.StringIO()
        exc.show(shown)
        say(shown.getvalue().rstrip())
        raise SystemExit(2) from None
    except (KeyboardInterrupt, click.Abort) as exc:
        click.echo("interrupted; the same command resumes", err=True)
        raise SystemExit(getattr(exc.__cause__ or exc, "exit_code", 130)) from None
    except BrokenPipeError:
        raise SystemExit(0) from None
    except Interrupted as exc:
        say(str(exc))
        raise SystemExit(exc.exit_code) from None
    except RhostreamError as exc:
        say(f"{'usage' if exc.exit_code == UsageError.exit_code else 'error'}: {exc}")
        for note in getattr(exc, "__notes__", []):
            say(f"  {note}")
        raise SystemExit(exc.exit_code) from None
    except OSError as exc:
        if exc.errno not in (errno.EMFILE, errno.ENFILE):
            say_internal(exc)
            raise SystemExit(1) from None
        say(
            "error: too many open files: raise the limit (`ulimit -n 4096`), or take fewer --workers and, in a "
            "stream, fewer --lanes"
        )
        raise SystemExit(3) from None
    except Exception as exc:
        say_internal(exc)
        raise SystemExit(1) from None
