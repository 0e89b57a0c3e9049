"""Text of a stranger, made harmless: one line, no control character, and in CSV nothing that a spreadsheet would run.

Pure functions of the text, below all wings: who shows a key and who reads a list that names it use the same ones.
"""

from __future__ import annotations

import shlex

# The full-width forms too: spreadsheets of some locales take them for the plain ones.
FORMULA = ("=", "+", "-", "@", "\t", "\r", "＝", "＋", "－", "＠")


SECRET_WORDS = ("KEY", "SECRET", "TOKEN", "PASSW", "CREDENTIAL", "AUTHORIZATION", "SIGNATURE")


def names_a_secret(name: str) -> bool:
    """Whether a variable or an option of that name holds what nobody else may read."""
    return any(word in name.upper() for word in SECRET_WORDS)


def escape(text: str) -> str:
    """The text on one line, with an escape for every character that isn't printable."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def csv_text(text: str) -> str:
    """The text as our CSV shows it: escaped, and behind a `'` where a spreadsheet would take it for a formula.

    Two texts may be shown alike (`-1` and `'-1`), so the way back is a search among the texts that can be meant.
    """
    return escape("'" + text if text.startswith(FORMULA) else text)


def shortened(text: str, width: int) -> str:
    """The text as it is up to `width` characters; a longer one keeps its beginning and its end around a `…`.

    What tells two long names apart is as often at the end as at the beginning.
    """
    if len(text) <= width:
        return text
    end = (width - 1) // 2
    return f"{text[: width - 1 - end]}…{text[len(text) - end :]}"


def one_line(text: str, width: int = 60) -> str:
    """A stranger's text for a message or a repr: escaped, and shortened to `width` characters."""
    return shortened(escape(text), width)


def shell_words(*words: str) -> str:
    """A command that a shell takes apart into exactly these words; what isn't printable is escaped (bash, zsh)."""
    return " ".join(shlex.quote(word) if word.isprintable() else _escaped_word(word) for word in words)


def _escaped_word(word: str) -> str:
    encoded = word.encode("utf-8", "surrogateescape")
    safe = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 /._-+=:,@%"
    return "$'" + "".join(chr(byte) if byte in safe else f"\\x{byte:02x}" for byte in encoded) + "'"
