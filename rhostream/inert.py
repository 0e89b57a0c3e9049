"""Text of a stranger, made harmless: one line, no control character, and in CSV nothing that a spreadsheet would run.

Pure functions of the text, below all wings: who shows a key and who reads a list that names it use the same ones.
"""

from __future__ import annotations

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


def shortened(text: str, most: int = 60) -> str:
    """The text escaped, its middle left out where it is longer than `most` letters: for a line of a repr."""
    text = escape(text)
    return text if len(text) <= most else f"{text[: most // 2 - 2]}...{text[1 - most // 2 :]}"


def csv_text(text: str) -> str:
    """The text as our CSV shows it: escaped, and behind a `'` where a spreadsheet would take it for a formula.

    Two texts may be shown alike (`-1` and `'-1`), so the way back is a search among the texts that can be meant.
    """
    return escape("'" + text if text.startswith(FORMULA) else text)
