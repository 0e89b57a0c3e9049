"""Secrets planted wherever users keep them, every verb, failing ones too, and then a search of every byte."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rhostream import cli, console, storage
from tests.faults.children import in_child, in_memory
from tests.faults.tally import say
from tests.support.shards import make_shards

ENVIRONMENT = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID", "GOOGLE_API_KEY", "HF_TOKEN",
               "RHOSTREAM_API_TOKEN", "RHOSTREAM_PROXY_PASSWORD", "HTTPS_PROXY_PASSWORD")  # fmt: skip
PLACES = ("user", "password", "signature", "fresh-signature", "options-key", "options-secret", "model-code")
CANARY = {place: f"c4n4ry{number:02d}q7w9e2" for number, place in enumerate((*ENVIRONMENT, *PLACES))}
WHO = f"{CANARY['user']}:{CANARY['password']}@"
SIGNED, FRESH = (f"?X-Amz-Signature={CANARY[place]}&X-Amz-Date=1" for place in ("signature", "fresh-signature"))
CLOSED = f"https://{WHO}127.0.0.1:9/bucket/a.tar{SIGNED}"  # nobody listens there


def commands(folder: Path) -> Iterator[tuple[str, int, list[str]]]:
    """(name, exit code, arguments); all that a user does, then all that goes wrong."""
    shards = [f"memory://{WHO}bucket/train-{n:03d}.tar{SIGNED}" for n in range(2)]
    fresh = [url.replace(SIGNED, FRESH) for url in shards]
    model, fit = f"{folder}/model", ["fit-il", "--model", "mlp-64", "--epochs", "1", "--shards"]
    table, run, memory = f"{folder}/il", f"{folder}/run", f"memory://{WHO}bucket"
    root = ["--root", f"elsewhere=https://{WHO}127.0.0.1/data{SIGNED}"]
    train = ["--il", table, "--model", "mlp-64", "--buffer-size", "20", "--batch-size", "4", "--checkpoint-every", "3"]
    yield "fit-il", 0, [*fit, *shards, "--out", model]
    yield "fit-il again", 0, [*fit, *fresh, "--out", model]
    yield "compute-il", 0, ["compute-il", "--shards", *shards, "--il-model", model, "--out", table, *root]
    yield "compute-il again", 0, ["compute-il", "--shards", *fresh, "--il-model", model, "--out", table]
    yield "index", 0, ["index", "--shards", *shards, "--out", f"{memory}/index", "--keep", "is_noisy:bool", *root]
    yield "train", 0, ["train", "--shards", *shards, *train, "--run", run, "--steps", "4", "--test-shards", shards[0],
                       *root]  # fmt: skip
    yield "train resumed by other URLs", 0, ["train", "--shards", *fresh, *train, "--run", run, "--steps", "8",
                                             "--test-shards", fresh[0], *root]  # fmt: skip
    yield "train in a store", 0, ["train", "--shards", *shards, *train, "--run", f"{memory}/run", "--steps", "4"]
    for place, name in ((run, "run"), (f"{memory}/run", "run in a store"), (table, "table")):
        yield f"status of the {name}", 0, ["status", place]
        yield f"verify the {name}", 0, ["verify", place]
        yield f"sql of the {name}", 0, ["sql", place, "select * from quarantine"]
    yield "status with shards", 0, ["status", table, "--shards", *shards]
    yield "report", 0, ["report", run, "-o", str(folder / "report.html")]
    yield "report against", 0, ["report", run, "--against", f"{memory}/run", "-o", str(folder / "both.html")]
    yield "doctor", 0, ["doctor"]
    yield "doctor json", 0, ["doctor", "--json"]
    yield "doctor of a store", 0, ["doctor", f"{memory}/x"]
    yield "doctor scoring", 0, ["doctor", "--scoring", "--shards", *shards, "--il", table, "--model", "mlp-64",
                                "--buffers", "1", "--proxy-batches", "1", "--buffer-size", "20", "--batch-size",
                                "4"]  # fmt: skip
    yield "estimate", 0, ["estimate", "--shards", *shards, "--model", "mlp-64", "--seconds", "1", "--json"]
    # -- what goes wrong
    bad = f"memory://{WHO}bucket/cut.tar{SIGNED}"
    yield "a cut shard", 3, ["index", "--shards", shards[0], bad, "--out", f"{folder}/cut"]
    yield "a cut shard at once", 3, ["index", "--shards", bad, "--out", f"{folder}/cut2", "--fail-fast"]
    yield "a bad shard to learn from", 3, ["fit-il", "--shards", bad, "--out", f"{folder}/m2", "--image-size", "16"]
    yield "a shard that is gone", 3, ["index", "--shards", bad.replace("cut", "gone"), "--out", f"{folder}/gone"]
    yield "nobody listens: index", 3, ["index", "--shards", CLOSED, "--out", f"{folder}/closed"]
    yield "nobody listens: fit-il", 3, ["fit-il", "--shards", CLOSED, "--out", f"{folder}/m3"]
    yield "nobody listens: compute-il", 3, ["compute-il", "--shards", CLOSED, "--il-model", model,
                                            "--out", table]  # fmt: skip
    yield "nobody listens: il", 3, ["train", "--shards", *shards, "--il", CLOSED, "--run", f"{folder}/r1"]
    yield "nobody listens: init", 3, ["train", "--shards", *shards, *train, "--run", f"{folder}/r2", "--init", CLOSED]
    yield "nobody listens: init of fit-il", 3, ["fit-il", "--shards", *shards, "--out", f"{folder}/m4", "--init",
                                                CLOSED]  # fmt: skip
    yield "nobody listens: keep-list", 3, ["train", "--shards", *shards, *train, "--run", f"{folder}/r3",
                                           "--keep-list", CLOSED]  # fmt: skip
    yield "nobody listens: model", 3, ["compute-il", "--shards", *shards, "--il-model", CLOSED, "--out", table]
    for verb in ("status", "verify", "sql", "report"):
        yield f"nobody listens: {verb}", 3, [verb, CLOSED, *(["select 1"] if verb == "sql" else [])]
    yield "nobody listens: doctor", 3, ["doctor", CLOSED]
    yield "nobody listens: estimate", 3, ["estimate", "--shards", CLOSED]
    yield "nobody listens: test shards", 3, ["train", "--shards", *shards, *train, "--run", f"{folder}/r4", "--steps",
                                             "2", "--test-shards", CLOSED]  # fmt: skip
    yield "a shard twice", 2, ["index", "--shards", shards[0], shards[0], "--out", table]
    yield "two names alike", 2, ["index", "--shards", shards[0], fresh[0], "--out", f"{folder}/twice"]
    yield "no match", 2, ["index", "--shards", f"memory://{WHO}bucket/none-*.tar{SIGNED}", "--out", table]
    yield "a shell", 2, ["index", "--shards", f"pipe:curl {CLOSED}", "--out", table]
    yield "a chain", 2, ["index", "--shards", f"simplecache::{CLOSED}", "--out", table]
    yield "a scheme", 2, ["index", "--shards", CLOSED.replace("https", "ftp"), "--out", table]
    yield "an option's value", 2, ["index", "--shards", *shards, "--out", table, "--workers", CLOSED]
    yield "an argument too many", 2, ["status", run, CLOSED]
    yield "a root", 2, ["index", "--shards", *shards, "--out", table, "--root", CLOSED]
    yield "other settings", 2, ["train", "--shards", *shards, *train, "--run", run, "--seed", "5"]
    yield "no such view", 2, ["sql", run, "select * from nothing"]
    yield "code that raises", 2, ["train", "--shards", *shards, *train, "--run", f"{folder}/r5", "--model",
                                  "leaky:make"]  # fmt: skip


def run_all(folder: Path, cases: list[tuple[str, int, list[str]]]) -> list[tuple[str, int, int]]:
    """Every command in this process, its stdout and stderr into files; (name, exit code, expected)."""
    os.chdir(folder / "cwd")
    os.environ |= {name: CANARY[name] for name in ENVIRONMENT} | {
        "RHOSTREAM_SPOOL": f"{folder}/spool", "AWS_MAX_ATTEMPTS": "1",
        "RHOSTREAM_STORAGE_OPTIONS": json.dumps({"https": {"client_kwargs": {"headers": {
            "Authorization": CANARY["options-key"], "X-Secret": CANARY["options-secret"]}}}}),
    }  # fmt: skip
    os.environ.pop(console.TRACEBACK, None)
    time.sleep = lambda seconds: None  # the pauses between tries
    store = fsspec.filesystem("memory")
    for path in sorted((folder / "shards").iterdir()):
        for query in (SIGNED, FRESH):
            store.pipe_file(f"/{WHO}bucket/{path.name}{query}", path.read_bytes())
    ended = []
    for number, (name, expected, arguments) in enumerate(cases):
        for fd, stream in ((1, "out"), (2, "err")):
            file = os.open(folder / "said" / f"{number:02d}.{stream}", os.O_WRONLY | os.O_CREAT)
            os.dup2(file, fd)
            os.close(file)
        sys.argv = ["rhostream", *arguments]
        try:
            cli.main()
            code: Any = 0
        except SystemExit as exc:
            code = exc.code or 0
        sys.stdout.flush()
        sys.stderr.flush()
        ended.append((name, code, expected))
    for path in store.find("/"):
        if not path.endswith((".tar" + SIGNED, ".tar" + FRESH)):
            copy = folder / "store" / path.removeprefix(f"/{WHO}bucket/")
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(store.cat_file(path))
    return ended


def searchable(path: Path) -> Iterator[bytes]:
    """The name and the bytes of a file; of Parquet also every value, since pages are compressed."""
    yield str(path).encode()
    data = path.read_bytes()
    yield data
    if data[:4] == b"PAR1":
        table = pq.read_table(path)
        yield repr(table.schema.metadata).encode() + repr(table.schema).encode()
        for column in table.columns:
            yield json.dumps(column.to_pylist(), default=str).encode()


def hits(folder: Path) -> tuple[Counter[tuple[str, str]], int, int]:
    """((what leaked, file): times), files and bytes searched."""
    found, files, size = Counter[tuple[str, str]](), 0, 0
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        files += 1
        for data in searchable(path):
            size += len(data)
            for place, canary in CANARY.items():
                if canary.encode() in data:
                    found[place, str(path.relative_to(folder))] += 1
    return found, files, size


def test_F10_no_secret_is_in_any_artifact_or_message_of_any_verb() -> None:
    """Secrets of the environment, of presigned URLs, of user:password@ and of storage options are in no artifact, page,
    log or message of any verb, failing ones included; a run whose URLs were signed anew goes on."""
    with in_memory() as folder:
        run_and_search(folder)


def run_and_search(tmp_path: Path) -> None:
    for name in ("cwd", "spool", "said", "shards", "store"):
        (tmp_path / name).mkdir()
    paths = make_shards(tmp_path / "shards", [40, 30])
    (tmp_path / "shards" / "cut.tar").write_bytes(paths[0].read_bytes()[: 9 * 512])
    leaky = f"raise ValueError('no weights, ' + os.environ['AWS_SECRET_ACCESS_KEY'])  # {CANARY['model-code']}"
    (tmp_path / "cwd" / "leaky.py").write_text(f"import os\ndef make(**_):\n    {leaky}\n")
    cases = list(commands(tmp_path))
    told = in_child(run_all, tmp_path, cases, limit=120)
    (tmp_path / "cwd" / "leaky.py").unlink()  # the user's own file, and its bytecode
    shutil.rmtree(tmp_path / "cwd" / "__pycache__", ignore_errors=True)
    said = {name: (tmp_path / "said" / f"{n:02d}.err").read_text() for n, (name, *_) in enumerate(cases)}
    # What a store that nobody answers for is called differs by verb and client: no such table, or no bytes.
    wrong = {
        name: (code, expected, said[name][-300:])
        for name, code, expected in told.result
        if code != expected and not (name.startswith("nobody listens") and code in (2, 3))
    }
    assert not wrong, "\n".join(map(str, wrong.items()))
    found, files, size = hits(tmp_path)
    codes = Counter(code for _, code, _ in told.result)
    say(
        f"secrets: {len(CANARY)} canaries, {len(cases)} commands (exit codes {dict(codes)}), {files} files, "
        f"{size:,} bytes searched: {found.total()} hits"
    )
    assert not found
    assert "raised ValueError: no weights, *** (leaky.py, line 3, in make)" in said["code that raises"]
    assert "Traceback" not in "".join(said.values())
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (
        run["shard_urls"][0] == "memory://bucket/train-000.tar"
        and run["roots"]["elsewhere"] == "https://127.0.0.1/data"
    )


def test_the_search_finds_a_secret_in_text_and_in_a_compressed_page(tmp_path: Path) -> None:
    secrets = [CANARY["password"] + str(n) for n in range(100)]
    pq.write_table(
        pa.table({"a": secrets}),
        tmp_path / "a.parquet",
        compression="zstd",
        use_dictionary=False,
        column_encoding="DELTA_BYTE_ARRAY",
    )
    (tmp_path / "b.txt").write_text(f"x{CANARY['signature']}x")
    assert set(hits(tmp_path)[0]) == {("password", "a.parquet"), ("signature", "b.txt")}


def test_the_console_shows_no_query_and_nothing_that_a_terminal_obeys(capsys: pytest.CaptureFixture[str]) -> None:
    console.say(f"error: GET {CLOSED} and s3://k:{CANARY['user']}@b/c failed\x1b[2J\x07\r\u202e; https://[bad")
    err = capsys.readouterr().err
    assert err == (
        "error: GET https://127.0.0.1:9/bucket/a.tar and s3://b/c failed\\x1b[2J\\x07\\r\\u202e; https://...\n"
    )
    assert storage.redact(CLOSED) == "https://127.0.0.1:9/bucket/a.tar"
