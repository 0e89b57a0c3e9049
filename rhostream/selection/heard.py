"""What a step that kept its whole buffer says of it: the losses of the training forwards, which come for nothing."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rhostream.candidates import Candidates
from rhostream.selection.selector import Selection, Selector
from rhostream.selection.stages import scatter
from rhostream.selection.whole import slice_of


def hear(selector: Selector, candidates: Candidates, selection: Selection, loss_b: Tensor | None) -> None:
    """Tell `--ratio auto` the losses (n,) of what this rank trained on, where it waits for them, and enter loss and
    score into the columns of the log. Collective; the host waits for the losses. None: the loop has none.

    They are of the training forwards: dropout is on, and of several updates the later ones know what the first learned.
    """
    ratio, ranks = selector.chooser.ratio, selector.ranks
    if ratio is None or not ratio.waits or selection.place is None:
        return
    if ranks.sum([loss_b is None and len(selection) > 0])[0]:
        return
    part, loss = slice_of(candidates, ranks), np.zeros(0, np.float32)
    if loss_b is not None:
        loss = loss_b.detach().float().cpu().numpy()
    told = ranks.concat_columns({"place": selection.place, "loss": loss}, part.planned)
    il_B = ranks.concat_columns({"il": candidates.host.il.numpy()}, part.most)["il"]
    loss_B = scatter(told["place"], np.where(np.isfinite(told["loss"]), told["loss"], np.nan), len(il_B))
    score_B = selector.scores.of_losses(torch.from_numpy(loss_B), torch.from_numpy(il_B), ratio.classes).numpy()
    ratio.see(score_B, loss_B, il_B, part.planned)
    own = slice(part.first, part.first + len(candidates))
    selection.loss[:], selection.score[:] = loss_B[own], np.where(np.isfinite(score_B[own]), score_B[own], np.nan)
