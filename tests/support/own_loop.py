"""Loops of one's own, as users write them, for tests that run, kill and compare them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

README = Path(__file__).parents[2] / "README.md"


def readme_loop() -> str:
    """The README's loop, word for word."""
    match = re.search(r"<!-- run by tests/test_run.py -->\n```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert match is not None
    return match[1]


def small(text: str, folder: str | Path, run: str | Path, every: int = 3, buffer_size: int = 40) -> str:
    """The loop on a small world: 16 pixels, four classes, commits every few buffers."""
    for old, new in {
        "784, 10": "256, 4",
        '"shards"': f'"{folder}/shards"',
        'il="il"': f'il="{folder}/il"',
        "buffer_size=320": f"buffer_size={buffer_size}",
        "batch_size=32": "batch_size=8",
        '"runs/mine"': f'"{run}"',
        ": scheduler}": f": scheduler}}, commit_every={every}",
        "StepLR(optimizer, 100)": "StepLR(optimizer, 5)",
    }.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


def run_readme(world: str, run: str, **options: Any) -> None:
    """The README's loop in this process."""
    exec(compile(small(readme_loop(), world, run, **options), "README.md", "exec"), {})


def network(seed: int = 0, classes: int = 4, dropout: float = 0.2) -> Any:
    """With dropout, so that chance has a part in it; of several ranks each has its own."""
    import torch
    from torch import nn

    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(256, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, classes))


def demanding(
    world: str,
    run: str,
    il: str = "",
    keeps_its_own: bool = False,
    save_every: int = 2,
    buffer_size: int = 40,
    **options: Any,
) -> None:
    """Dropout, weight decay, an average of the weights, updates of two batches, importance sampling, buffers without
    candidates, and an update that a guard refuses. With `keeps_its_own` the loop has checkpoints of its own, by
    torch.save, in RUN.pt.
    """
    import os

    import torch
    from torch.nn.functional import cross_entropy
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    import rhostream

    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    objects = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "average": average}
    stream = rhostream.open_stream(
        f"{world}/shards", il=il or f"{world}/il", buffer_size=buffer_size, lanes=1, seed=3, missing_il="skip"
    )
    selector = rhostream.Selector(model, rule="grad_norm_is", batch_size=8, seed=3)
    checkpoint = run + ".pt"
    made = rhostream.Run(
        run,
        stream,
        selector,
        accumulate=2,
        config={"lr": 1e-2},
        commit_every=4,
        state=None if keeps_its_own else objects,
        **options,
    )
    if keeps_its_own and os.path.exists(checkpoint):
        saved = torch.load(checkpoint, weights_only=True)
        for name, thing in objects.items():
            thing.load_state_dict(saved[name])
        made.load_state_dict(saved["run"])
    batches = 0
    for kept in made:
        loss_b = cross_entropy(model(kept.input), kept.label, reduction="none")
        (kept.mean(loss_b) / 2).backward()
        refused = made.steps in (6, 7)  # a guard's verdict on an update
        closing = made.closing
        if closing and not refused:
            optimizer.step()
            average.update_parameters(model)
        if closing:
            optimizer.zero_grad()
        made.step(loss_b, applied=not (closing and refused))
        if closing:
            scheduler.step()
            batches += 1
            if made.steps == 10:
                made.evaluated(accuracy=0.5, samples=10)
        if keeps_its_own and closing and batches % save_every == 0:
            save(checkpoint, objects, made)
    if keeps_its_own:
        save(checkpoint, objects, made)


def save(path: str, objects: dict[str, Any], made: Any) -> None:
    """A checkpoint of the loop's own: whole or not at all."""
    import os

    import torch

    from rhostream.crashpoints import crash_point

    state = {**{name: thing.state_dict() for name, thing in objects.items()}, "run": made.state_dict()}
    crash_point("own loop: state handed out")  # and lost
    torch.save(state, path + ".part")
    os.replace(path + ".part", path)
    crash_point("own loop: state saved")


def all_of(run: Path, keeps_its_own: bool = False) -> tuple[list[str], str]:
    """The rows of the log in their order, and every tensor and number of the last state, bit by bit."""
    import torch

    import rhostream
    from rhostream.audit.verify import verify
    from rhostream.runs import checkpoint
    from rhostream.runs.state import read_states
    from rhostream.runs.tensors import read_files

    latest = checkpoint.latest(str(run))
    assert latest is not None and latest.complete and not verify(str(run))["problems"]
    with rhostream.open_ledger(str(run)) as ledger:
        rows = ledger.sql("SELECT * EXCLUDE (run) FROM selections").to_pylist()
        steps = ledger.sql("SELECT step, kept, loss_kept, learning_rate, test_accuracy FROM steps").to_pylist()
    if keeps_its_own:
        state = torch.load(f"{run}.pt", weights_only=True)
        del state["run"]["link"]  # another commit has another name
    else:
        state = read_states(read_files(str(run), latest))
    return [repr(row) for row in (*rows, *steps)], _bits(state)


def _bits(value: Any) -> str:
    import torch

    if isinstance(value, torch.Tensor):
        return f"{value.dtype}{list(value.shape)}{value.contiguous().numpy().tobytes().hex()}"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_bits(value[key])}" for key in sorted(value, key=str)) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_bits, value)) + "]"
    return repr(value)
