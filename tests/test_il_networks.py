"""The networks of an IL model as they come back from their files: of each that is built in, weight for weight."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from safetensors.torch import save_file

from rhostream import models
from rhostream.errors import TableError
from rhostream.il_model.networks import load_networks
from rhostream.models.pairs import PAIR_MODELS
from rhostream.models.text import TEXT_MODELS
from rhostream.samples.kind import Kind

IMAGE = {"image_size": 20, "channels": 3}
TEXT = {"vocabulary": 50, "length": 8, "padding": 0}


def made_for(name: str) -> dict[str, Any]:
    if name in PAIR_MODELS:
        return {**IMAGE, **TEXT, "task": "pairs"}
    return {**TEXT, "task": models.task_of(name)} if name in TEXT_MODELS else IMAGE


@pytest.mark.parametrize("name", models.NAMES)
def test_a_network_comes_back_as_it_was_written_though_no_starting_values_are_drawn(name: str, tmp_path: Path) -> None:
    told = made_for(name)
    classes = None if name in PAIR_MODELS else 50 if told.get("task") == "language" else 7
    kind = cast(Kind, SimpleNamespace(model_arguments=lambda: told))
    network, file = models.build(name, classes=classes, **told), tmp_path / "weights.safetensors"
    save_file(network.state_dict(), file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    made = {"architecture": name, "classes": classes, "weights": [digest]}
    before = torch.get_rng_state()
    (found,) = load_networks(str(tmp_path), [file.name], made, kind)
    assert torch.equal(torch.get_rng_state(), before)
    expected, state = network.state_dict(), found.state_dict()
    assert state.keys() == expected.keys() and all(torch.equal(state[key], expected[key]) for key in expected)
    assert not any(tensor.is_meta for tensor in (*found.parameters(), *found.buffers())) and not found.training
    other = {**made, "classes": 7, "architecture": "mlp-64" if name != "mlp-64" else "mlp-256"}
    with pytest.raises(TableError, match="doesn't fit"):
        load_networks(str(tmp_path), [file.name], other, cast(Kind, SimpleNamespace(model_arguments=lambda: IMAGE)))
