"""The live IL model of the rule `rho_updated`: the very weights that made the table, found in the IL model's folder.

The table says itself what made its il: architecture, preprocessing, temperature, the sha256 of each fold's weights. The
folder only has to hold files of these hashes. So what is loaded is the table's model and nothing else.
"""

from __future__ import annotations

import torch

from rhostream import storage
from rhostream.errors import MismatchError, UntrustedCodeError, UsageError
from rhostream.il_model.info import require_info
from rhostream.il_model.networks import load_networks
from rhostream.runs.cost import Cost
from rhostream.runs.macs import macs_per_sample
from rhostream.samples import registry
from rhostream.samples.kind import Kind, View
from rhostream.selection.live import LiveIL
from rhostream.selection.losses import find_loss
from rhostream.tables.il import Table


def load_live(
    table: Table,
    folder: str | None,
    decoded: Kind,
    device: torch.device,
    *,
    lr: float,
    view: View = None,
    code: str | None = None,
) -> LiveIL:
    """The IL model of the table, ready to learn along at the rate `lr`.

    `folder` is where fit-il left it, by default where it lay when the table was made; `decoded`, at `view`, is what the
    stream decodes. Raises UsageError, MismatchError when it isn't the table's or takes images of another size,
    UntrustedCodeError for an architecture of somebody's own that `code` doesn't name.
    """
    made, place = table.info.ingredients, folder or table.info.places.get("il_model")
    if reference := table.info.reference:
        raise UsageError(
            f"the rule rho_updated trains the IL model along, and the il of {storage.redact(table.url)} are of the "
            f"reference {reference['name']}, which stays as it is: take rho, or an IL model of fit-il"
        )
    if place is None:
        raise UsageError("the rule rho_updated needs the IL model itself: give --il-model DIR, what fit-il wrote")
    place, shown = storage.resolve(place), storage.redact(storage.resolve(place))
    architecture = str(made.get("architecture"))
    UntrustedCodeError.unless_named(architecture, code, storage.redact(table.url), "--il-code")
    # A user's own kind was named when the stream was opened.
    own = registry.from_json(made["preprocess"], decoded.name, storage.redact(table.url))
    if own.sees() != decoded.sees(view):
        raise UsageError(
            f"the IL model takes {own.in_words()}, and this run decodes {decoded.in_words(view)}: a model that learns "
            f"along sees what the target sees; give {own.options()}"
        )
    files = require_info(place).weights
    if [digest for _, digest in files] != made["weights"]:
        theirs, ours = (", ".join(digest[:12] for digest in of) for of in ([d for _, d in files], made["weights"]))
        raise MismatchError(
            f"{shown} has weights of sha256 {theirs}, the table was made with {ours}: it is another IL model; "
            "give the table's with --il-model"
        )
    networks = load_networks(place, [name for name, _ in files], made, own)
    for network in networks:
        network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    loss = find_loss(str(made.get("loss", "cross_entropy")))
    return LiveIL(networks, own.inputs, lr=lr, loss=loss, target=own.target)


def set_live_macs(cost: Cost, live: LiveIL, seen: Kind, view: View) -> None:
    """Enter what one sample costs the IL model that learns along."""
    network = live.networks[0]
    cost.live_macs = macs_per_sample(network, seen.example(view=view).to(next(network.parameters()).device))
