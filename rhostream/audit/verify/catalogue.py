"""The catalogues of a table, proved: each row against the part that it speaks of."""

from __future__ import annotations

from collections.abc import Mapping

from rhostream import storage
from rhostream.audit.verify.parts import Finding
from rhostream.errors import NotFoundError, TableError
from rhostream.tables import il

CATALOGUE = "catalogue"
_SLICE = 1024


def catalogue_findings(table: str, info: il.TableInfo, sound: Mapping[str, il.PartFacts]) -> tuple[list[Finding], str]:
    """Each catalogue that lies or is damaged, and in words how many sound parts the best of the others doesn't cover.

    `sound`: the facts of each part that was proved, by its shard's name. A row of a part that was replaced or is gone
    is no lie: it counts for nothing.
    """
    findings, least = list[Finding](), None
    urls = {il.part_url(table, name): name for name in sound}
    for url in il.catalogues(table):
        try:
            catalogue = il.open_catalogue(table, info, url)
            wrong = _wrong(catalogue, urls, sound)
        except NotFoundError:
            continue  # removed meanwhile
        except TableError as exc:
            findings.append(Finding(CATALOGUE, "", url, f"{storage.redact(url)} can't be used: {exc}"))
            continue
        if wrong:
            says = f"{storage.redact(url)} says of {len(wrong):,} parts what they don't, first that of {wrong[0]}"
            findings.append(Finding(CATALOGUE, "", url, f"{says}: it is forged, or was made by a broken machine"))
            continue
        asked = sum(not catalogue.covers(part) for part in urls)
        least = asked if least is None else min(least, asked)
    if not least:
        return findings, ""
    return findings, f"the catalogue lacks {least:,} of {len(urls):,} parts, whose footers are read one by one"


def _wrong(catalogue: il.Catalogue, urls: Mapping[str, str], sound: Mapping[str, il.PartFacts]) -> list[str]:
    """The names of shards whose facts are others in the catalogue."""
    listed, wrong = list(urls), list[str]()
    for start in range(0, len(listed), _SLICE):
        some = listed[start : start + _SLICE]
        for url, facts in zip(some, catalogue.facts(some), strict=True):
            if catalogue.covers(url) and facts != sound[urls[url]]:
                wrong.append(urls[url])
    return wrong
