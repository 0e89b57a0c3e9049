"""`python -m jobs.reproduce.tables`: what the results files say, as Markdown: claims of the paper, and arms by world.

It reads what experiments have written and computes nothing: the same figures with all their seeds are in
`<out>/results/<experiment>-<scale>.parquet`.

    --claims            only the claims
    --moved DIR         every claim's figure in older results (the Parquet files of DIR) beside today's
    --page PATH         fill the blocks of a Markdown page, or of a folder's pages, in place, each between two comments:

    <!-- made: claims -->                                        what stands here is replaced
    <!-- end -->
    <!-- made: our claims -->                                    this library's own
    <!-- made: moved 2026-11-26 -->                              a folder below <out>/results
    <!-- made: every arm -->                                     all claims and arms of all experiments
    <!-- made: opposite -->                                      the paper's claims that point the other way here
    <!-- made: opening pretrained; pretrained-worse -->          accuracy and all it cost; these worlds and arms, or all
    <!-- made: verdict pretrained -->                            the same in words
    <!-- made: break-even pretrained -->                         where selection would begin to pay
    <!-- made: equal table2 -->                                  at equal units, IL charged and not
    <!-- made: cost equal_cost; noise10; clean -->               accuracy against forward units, of all worlds or these
    <!-- made: regret equal_cost, table2 -->                     whether a run with selection is regretted
    <!-- made: regret-in-short equal_cost, table2 -->            the same in a sentence
    <!-- made: arms table3; final accuracy; times fewer steps -->  worlds and arms, these columns
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.reproduce.at_cost import cost_tables, regret_in_short, regret_table
from jobs.reproduce.command import SCALES, guarded
from jobs.reproduce.markdown import TITLES, Row, arm_tables, claim_tables, equal_tables, opposite, ours_of, table
from jobs.reproduce.opening import break_even_tables, brief_table, opening_tables, verdicts
from jobs.reproduce.published import judged
from jobs.reproduce.results import SCHEMA
from jobs.reproduce.suite import EXPERIMENTS
from rhostream.errors import UnknownNameError, UsageError

NAMES = (*EXPERIMENTS, "table1", "lag")
NOT_YET = "Not measured yet."


@click.command()
@click.option("--out", default="reproduce", show_default=True, help="The folder that the experiments wrote to.")
@click.option("--scale", default="small", show_default=True, type=click.Choice(SCALES), help="Which of their results.")
@click.option("--only", help="Names of experiments, separated by commas; by default all that have results.")
@click.option("--claims", is_flag=True, help="Only the table of claims.")
@click.option("--moved", metavar="DIR", help="Only what moved since the results files of DIR.")
@click.option("--page", metavar="PATH", help="Fill the blocks of a Markdown page, or of a folder's pages, instead.")
def main(out: str, scale: str, only: str | None, claims: bool, moved: str | None, page: str | None) -> None:
    """What the experiments found, as Markdown: the paper's claims beside our figures, then every arm."""
    names = only.split(",") if only else None
    if page is not None:
        guarded(lambda: fill(page, out, scale))
    elif moved is not None:
        guarded(lambda: click.echo(told_moved(out, scale, moved, names)))
    else:
        guarded(lambda: click.echo(told(out, scale, names, claims)))


def told(out: str, scale: str, only: Sequence[str] | None = None, claims: bool = False) -> str:
    """The tables as one text. Raises UnknownNameError for an experiment, UsageError for no or bad results."""
    found = _results(Path(out, "results"), scale, only)
    if not found:
        raise UsageError(f"no results of scale {scale} in {out}/results: run python -m jobs.reproduce --{scale} --out "
                         f"{out} first")  # fmt: skip
    parts = claim_tables(judged(row for rows in found.values() for row in rows))
    if not claims:
        for name, rows in found.items():
            parts += [f"## {name}", *arm_tables(rows), *equal_tables(rows)]
    return "\n\n".join(parts)


def _results(folder: Path, scale: str, only: Sequence[str] | None = None) -> dict[str, list[Row]]:
    """Experiment -> its rows, of those that have results there. Raises UnknownNameError, UsageError for a bad file."""
    for name in only or ():
        if name not in NAMES:
            raise UnknownNameError.of("experiment", name, NAMES)
    paths = {name: folder / f"{name}-{scale}.parquet" for name in only or NAMES}
    return {name: _read(path) for name, path in paths.items() if path.exists()}


def _read(path: Path) -> list[Row]:
    try:
        found = pq.read_table(path)
    except (pa.ArrowException, OSError) as exc:
        raise UsageError(f"{path}: no results file ({str(exc).splitlines()[0]})") from exc
    if lacking := [name for name in SCHEMA.names if name not in found.column_names]:
        raise UsageError(f"{path}: no results file, it lacks the column {lacking[0]!r}")
    rows: list[Row] = found.to_pylist()
    return rows


def told_moved(out: str, scale: str, older: str, only: Sequence[str] | None = None) -> str:
    """Claim, its older figure, today's: where either moved. Raises as `told`."""
    now, before = _results(Path(out, "results"), scale, only), _results(Path(older), scale, only)
    if not now or not before:
        raise UsageError(f"no results of scale {scale} in {older if now else f'{out}/results'}")
    lines, same = [], 0
    for name in NAMES:
        found, known = ({_key(r): r for r in of.get(name, []) if r["kind"] == "claim"} for of in (now, before))
        for key in {**found, **known}:
            if all(key not in of or of[key]["state"] == "not measured" for of in (found, known)):
                continue
            cells = [_figure(of.get(key), rows.get(name, [])) for of, rows in ((known, before), (found, now))]
            same += cells[0] == cells[1]
            if cells[0] != cells[1]:
                about = found.get(key) or known[key]
                lines.append([about["claim"], *cells, f"{name}, {about['world']}: {about['arm']}"])
    kept = [name for name in now if str(now[name]) == str(before.get(name))]
    parts = [table(["claim", "before", "now", "from"], lines)] if lines else []
    parts += [f"{same} settings of claims did not move."]
    return "\n\n".join(parts + ([f"Not run again: {', '.join(kept)}."] if kept else []))


def _key(claim: Row) -> tuple[Any, ...]:
    """What a claim is about, whatever its words."""
    return tuple(claim[name] for name in ("world", "arm", "baseline", "metric"))


def _figure(claim: Row | None, rows: Sequence[Row]) -> str:
    """A claim's figure and its direction; a dash where there is none."""
    if claim is None or claim["state"] == "not measured":
        return "-"
    compared = [row for row in rows if row["kind"] == "comparison"]
    return f"{ours_of(claim, compared, with_il=False)}: {claim['state']}"


REGRET = {"regret": regret_table, "regret-in-short": regret_in_short}
_BLOCK = re.compile(r"(<!-- made: (.*?) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(page: str, out: str, scale: str) -> str:
    """A page with its blocks made anew. Raises UsageError for a block that can't be made, and as `told`."""
    return _BLOCK.sub(lambda block: f"{block[1]}{_block(block[2], out, scale)}\n{block[3]}", page)


def fill(page: str, out: str, scale: str) -> None:
    """Write the page, or every page below a folder, with its blocks made anew. Raises as `filled`."""
    for path in sorted(Path(page).rglob("*.md")) if Path(page).is_dir() else [Path(page)]:
        if _BLOCK.search(text := path.read_text()):
            path.write_text(filled(text, out, scale))
            click.echo(f"filled   {path}")


def _block(asked: str, out: str, scale: str) -> str:
    what, *columns = (part.strip() for part in asked.split(";"))
    kind, _, rest = what.partition(" ")
    if what in ("claims", "our claims"):
        title = TITLES[what == "our claims"]
        parts = claim_tables(judged(row for rows in _results(Path(out, "results"), scale).values() for row in rows))
        at = next((n for n, part in enumerate(parts) if part.startswith(f"## {title}")), None)
        if at is None:
            raise UsageError(f"made: {asked}: no such claim was measured")
        return f"**{parts[at].removeprefix('## ')}.**\n\n{parts[at + 1]}"
    if kind in ("opening", "brief", "verdict", "break-even"):
        rows = _results(Path(out, "results"), scale, [rest]).get(rest, [])
        if kind == "verdict":
            return "\n\n".join(verdicts(rows)) or NOT_YET
        if kind == "brief":
            return table(*brief_table(rows, columns)) if rows else NOT_YET
        worlds = {row["world"] for row in rows}.intersection(columns)
        arms = [name for name in columns if name not in worlds]
        made = opening_tables(rows, arms) if kind == "opening" else break_even_tables(rows)
        made = [one for one in made if not worlds or one[0] in worlds]
        return "\n\n".join(f"**{world}**\n\n{table(head, lines)}" for world, head, lines in made) or NOT_YET
    if kind == "moved":
        return told_moved(out, scale, str(Path(out, "results", rest)))
    if what == "every arm":
        return told(out, scale)
    if what == "opposite":
        return opposite(judged(row for rows in _results(Path(out, "results"), scale).values() for row in rows))
    if kind not in ("equal", "arms", "cost", *REGRET):
        raise UsageError(f"made: {asked}: expected claims, our claims, every arm, opposite, opening, brief, verdict, "
                         f"break-even, moved, equal, cost, {', '.join(REGRET)} or arms")  # fmt: skip
    names = [name.strip() for name in rest.split(",")]
    found = _results(Path(out, "results"), scale, names)
    if kind in REGRET:
        return REGRET[kind](found) if found else NOT_YET
    rows = found.get(rest, [])
    if kind == "cost" and not rows:
        return NOT_YET
    if kind == "cost":
        if unknown := sorted({*columns} - {row["world"] for row in rows}):
            raise UsageError(f"made: {asked}: no such world was measured: {', '.join(unknown)}")
        rows = [row for row in rows if not columns or row["world"] in columns]
        return "\n\n".join(f"**{part[4:]}**" if part.startswith("### ") else part for part in cost_tables(rows))
    if kind == "equal":
        return "\n\n".join(equal_tables(rows)[1:]) or NOT_YET
    return "\n\n".join(f"**{part[4:]}**" if part.startswith("### ") else part for part in arm_tables(rows, columns))


if __name__ == "__main__":
    main()
