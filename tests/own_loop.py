"""Loops of one's own, as users write them, for tests that run, kill and compare them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

README = Path(__file__).parent.parent / "README.md"


def readme_loop() -> str:
    """The README's loop, word for word."""
    match = re.search(r"<!-- run by tests/test_run.py -->\n```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert match is not None
    return match[1]


def small(text: str, folder: str | Path, run: str | Path, every: int = 3, buffer_size: int = 40) -> str:
    """The loop on a small world: 16 pixels, four classes, commits every few buffers."""
    for old, new in {"784, 10": "256, 4", '"shards"': f'"{folder}/shards"', 'il="il"': f'il="{folder}/il"',
                     "buffer_size=320": f"buffer_size={buffer_size}", "batch_size=32": "batch_size=8",
                     '"runs/mine"': f'"{run}"', ": scheduler}": f": scheduler}}, commit_every={every}",
                     "StepLR(optimizer, 100)": "StepLR(optimizer, 5)"}.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


def run_readme(world: str, run: str, **options: Any) -> None:
    """The README's loop in this process."""
    exec(compile(small(readme_loop(), world, run, **options), "README.md", "exec"), {})


def network(seed: int = 0, classes: int = 4) -> Any:
    """With dropout, so that chance has a part in it."""
    import torch
    from torch import nn

    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(256, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, classes))


def demanding(world: str, run: str, il: str = "", checkpoint: str = "", save_every: int = 4, buffer_size: int = 40,
              rule: str = "grad_norm_is", **options: Any) -> None:
    """Dropout, weight decay, an average of the weights, updates of two batches, importance sampling, buffers without
    candidates and a batch that no update takes. With `checkpoint` the loop keeps its own, by torch.save.
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
    stream = rhostream.open_stream(f"{world}/shards", il=il or f"{world}/il", buffer_size=buffer_size, lanes=1, seed=3,
                                   missing_il="skip")
    selector = rhostream.Selector(model, rule=rule, batch_size=8, seed=3)
    made = rhostream.Run(run, stream, selector, accumulate=2, config={"lr": 1e-2}, commit_every=4,
                         state=None if checkpoint else objects, **options)
    if checkpoint and os.path.exists(checkpoint):
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
        if checkpoint and closing and batches % save_every == 0:
            save(checkpoint, objects, made)
    if checkpoint:
        save(checkpoint, objects, made)


def save(path: str, objects: dict[str, Any], made: Any) -> None:
    """A checkpoint of the loop's own: whole or not at all."""
    import os

    import torch

    from rhostream.crashpoints import crash_point

    state = {**{name: thing.state_dict() for name, thing in objects.items()}, "run": made.state_dict()}
    crash_point_of_the_test(crash_point)
    torch.save(state, path + ".part")
    os.replace(path + ".part", path)


def crash_point_of_the_test(crash_point: Any) -> None:
    """Between the run's part and the file: the state is lost."""
    crash_point("own loop: state handed out")
