"""What a table of pairs has beside: the bank that its il was taken against, and a law that il is what its terms say.

siglip    il = own + (n-1) (image + text)
clip      il = own + ½ sp(ln(n-1) + image) + ½ sp(ln(n-1) + text), sp: softplus

n is the batch of the reference. `selection/contrastive.py` has what the terms are; nothing here needs torch.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from rhostream import storage
from rhostream.tables.il.info import PAIR_COLUMNS, TableInfo


def bank_file(digest: str) -> str:
    """The file in a table of the bank that a reference's il was taken against, by its sha256."""
    return f"bank-{digest[:16]}.safetensors"


def bank_doubts(table: str, info: TableInfo) -> list[str]:
    """What is wrong with the bank in a (resolved) table of a reference, in sentences; an IL model has its own."""
    says = []
    for digest in info.bank["sha256"] if info.bank and info.reference else ():
        url = storage.join(table, bank_file(digest))
        if not storage.exists(url):
            why = "is gone"
        elif storage.digest_of(url)[1] != digest:
            why = "isn't the one that il was taken against (sha256 differs)"
        else:
            continue
        says.append(f"{storage.redact(url)} {why}: no part can be made again or added with the same il")
    return says


def broken_terms(rows: pa.Table, info: TableInfo) -> list[str]:
    """The laws that the il of a part of pairs break, in words; [] of any other table."""
    if not info.bank:
        return []
    il, own, image, text = (
        rows[name].combine_chunks().cast(pa.float32()).fill_null(np.nan).to_numpy(zero_copy_only=False).astype(float)
        for name in ("il", *list(PAIR_COLUMNS)[:3])
    )
    n = info.bank["batch_size"]
    with np.errstate(invalid="ignore", over="ignore"):
        if info.ingredients.get("loss") == "siglip":
            made = own + (n - 1) * (image + text)
        else:
            shift = np.log(max(n - 1, 1))
            made = own + (np.logaddexp(0, shift + image) + np.logaddexp(0, shift + text)) / 2
    there = np.isfinite(il)
    tolerance = 2e-3 if info.il_dtype == "float16" else 1e-4
    fits = np.isclose(il[there], made[there], rtol=tolerance, atol=tolerance) | (il[there] >= 65504)
    return [] if fits.all() and np.isnan(own[~there]).all() else ["il of pairs is what its terms say"]
