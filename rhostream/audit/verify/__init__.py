"""Proving what was written: an IL table, a run, an IL model; what `rhostream verify` prints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rhostream import storage
from rhostream.audit.runs import is_table
from rhostream.audit.status import status_of
from rhostream.audit.verify.il_model import prove_il_model
from rhostream.audit.verify.run import prove_run
from rhostream.audit.verify.table import prove_table
from rhostream.il_model.info import is_il_model

__all__ = ["status_of", "verify"]


def verify(folder: str, *, shards: Iterable[str] = (), roots: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Prove a table, a run or an IL model: {"kind", "files", "rows", "problems", "warnings", "next", ...}.

    `shards` are compared with what a table says of them: those that changed or have no part are problems, parts of
    others a warning. Raises UsageError for a folder that is none of these.
    """
    folder = storage.resolve(folder)
    if is_table(folder):
        return prove_table(folder, shards, roots).as_json()
    if is_il_model(folder):
        return prove_il_model(folder)
    return prove_run(folder).as_json()
