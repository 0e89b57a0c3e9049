"""Which tokens of a noisy text are worth a gradient: test loss after equal steps, by choice of tokens and sequences.

6 MB of the source of Python's standard library as bytes, documents packed end to end in flat files. A share of what is
trained on is overwritten with random bytes, in stretches; the reference learned from other documents that are clean.
"""

from __future__ import annotations

import json
import sysconfig
from pathlib import Path
from statistics import mean
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import torch

import rhostream
from rhostream.randomness import generator
from rhostream.selection.tokens import kept_tokens

IDS, END, T, STRETCH = 257, 256, 64, 16  # ids, of which the last one ends a document; ids a sample, and of a stretch
N_B, N_b, SHARDS, NOISE = 160, 32, 8, 0.3
TEXT = 6_000_000  # bytes
SAYS: dict[str, Any] = {"tokenizer": f"ids:{IDS}", "text_length": T, "task": "language", "end_of_text": END}
ALL = {"rule": "uniform", "buffer_size": N_b, "batch_size": N_b}
ARMS: dict[str, dict[str, Any]] = {
    "all tokens of all sequences": ALL,
    "60 % of the tokens, by loss - il": {**ALL, "token_share": 0.6},
    "all tokens of a fifth of the sequences, by loss - il": {"rule": "rho", "buffer_size": N_B, "batch_size": N_b},
    "both": {"rule": "rho", "buffer_size": N_B, "batch_size": N_b, "token_share": 0.6},
}


def make_text(out: Path) -> None:
    """train/ with noise, holdout/ and test/ without, of different documents; noise/ says where it is."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(path for path in root.rglob("*.py") if "site-packages" not in path.parts)
    order = generator("jobs.tokens").permutation(len(files)).tolist()
    texts = [np.frombuffer(files[n].read_bytes(), np.uint8).astype("<u2") for n in order]
    ends = np.cumsum([len(text) for text in texts]) / TEXT
    for folder, first, last in (("test", 0.0, 0.04), ("holdout", 0.04, 0.3), ("train", 0.3, 1.0)):
        some = [np.append(text, np.uint16(END)) for text, end in zip(texts, ends, strict=True) if first < end <= last]
        ids = np.concatenate(some)
        (out / folder).mkdir(parents=True)
        for number, piece in enumerate(np.array_split(ids, SHARDS)):
            if folder == "train":
                noise = np.repeat(generator("jobs.tokens", number).random(-(-len(piece) // STRETCH)) < NOISE, STRETCH)
                noise = noise[: len(piece)] & (piece != END)
                random = generator("jobs.tokens", "bytes", number).integers(0, END, len(piece))
                piece = np.where(noise, random, piece)
                np.save(out / f"noise-{number}.npy", noise)
            piece.astype("<u2").tofile(out / folder / f"{number}.bin")


def fit_and_score(out: Path) -> None:
    """The reference and the table of its il."""
    roots = {"tokens": str(out)}
    rhostream.fit_il(
        f"{out}/train/*.bin", f"{out}/il-model", model="text-lm", holdout=f"{out}/holdout/*.bin", fit_samples=20_000,
        epochs=3, lr=3e-3, device="cpu", roots=roots, **SAYS,
    )  # fmt: skip
    rhostream.compute_il(f"{out}/train/*.bin", f"{out}/il-model", f"{out}/il", device="cpu", roots=roots)


def tested(out: Path, name: str, seed: int, steps: int) -> float:
    """Nats a token on the test text after a run; one that is there is gone on with."""
    run = f"{out}/runs/{''.join(c if c.isalnum() else '-' for c in name)}-{seed}-{steps}"
    rhostream.train(
        f"{out}/train/*.bin", f"{out}/il", run, model="text-lm", steps=steps, lr=3e-3, seed=seed, threads=1,
        device="cpu", test_shards=f"{out}/test/*.bin", eval_every=steps, roots={"tokens": str(out)}, **ARMS[name],
    )  # fmt: skip
    with rhostream.open_ledger(run) as ledger:
        rows = ledger.sql("select test_loss from steps where test_loss is not null order by step")
        return float(rows["test_loss"][-1].as_py())


def noise_by_il(out: Path) -> tuple[float, float]:
    """The share of noise among all tokens, and among the 60 % of the largest -il: what a constant loss would keep."""
    stream = rhostream.open_stream(
        f"{out}/train/*.bin", f"{out}/il", buffer_size=N_B, il_tokens=True, roots={"tokens": str(out)}
    )
    names = stream.stream.table.names
    noise: dict[str, npt.NDArray[np.bool_]] = {
        name: np.load(out / f"noise-{Path(name).stem}.npy") for name in names
    }  # fmt: skip
    seen = kept = of_seen = of_kept = 0
    for candidates, _ in zip(stream, range(50), strict=False):
        assert candidates.il_tokens is not None
        il_BT = candidates.il_tokens.float()
        is_noise = torch.from_numpy(np.stack([
            noise[names[shard]][ordinal * T : (ordinal + 1) * T]
            for shard, ordinal in zip(candidates.shard.tolist(), candidates.ordinal.tolist(), strict=True)
        ]))  # fmt: skip
        counts = ~torch.isnan(il_BT)
        chosen = kept_tokens(torch.where(counts, 0.0, torch.nan), il_BT, 0.6)
        seen, kept = seen + int(counts.sum()), kept + int(chosen.sum())
        of_seen, of_kept = of_seen + int((counts & is_noise).sum()), of_kept + int((chosen & is_noise).sum())
    return of_seen / seen, of_kept / kept


@click.command()
@click.option("--out", required=True, help="Folder of the text, the il and the runs.")
@click.option("--seeds", default=3)
@click.option("--steps", default=300)
def main(out: str, seeds: int, steps: int) -> None:
    """Train each, seed by seed, and say what was reached."""
    folder = Path(out)
    if not (folder / "il").exists():
        make_text(folder)
        fit_and_score(folder)
    click.echo("noise: {:.1%} of the tokens, {:.1%} of the 60 % of lowest il".format(*noise_by_il(folder)))
    reached: dict[str, list[float]] = {name: [] for name in ARMS}
    for seed in range(seeds):
        for name, values in reached.items():
            values.append(tested(folder, name, seed, steps))
            click.echo(f"{name}, seed {seed}: {values[-1]:.4f} nats")
    for name, values in reached.items():
        click.echo(f"{name}: {mean(values):.3f} nats a token ({min(values):.3f} to {max(values):.3f})")
    (folder / "tokens.json").write_text(json.dumps(reached))


if __name__ == "__main__":
    main()
