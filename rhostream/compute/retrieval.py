"""How good a model of pairs is on a test set: whether the right caption is found for an image, and the right image.

    image_to_text_1, _10    share of images whose caption is among the 1 (10) most similar of all different captions
    text_to_image_1, _10    share of captions of which an image is among the 1 (10) most similar of all images

Captions that are the same tokens are one caption, and any of its images is a right one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rhostream.selection.contrastive import Pairs

RANKS = (1, 10)
BLOCK = 512  # rows of the similarity at once


@torch.no_grad()
def recalls(pairs: Pairs, tokens_NL: Tensor) -> dict[str, float]:
    """By the names above, of N pairs and the tokens of their captions; vectors that aren't finite are never found."""
    captions, of_N = torch.unique(tokens_NL, dim=0, return_inverse=True)
    first_M = torch.full((len(captions),), len(of_N), dtype=torch.int64).scatter_reduce_(
        0, of_N.cpu(), torch.arange(len(of_N)), "amin"
    )
    image_ND = torch.where(pairs.finite_N[:, None], pairs.image_ND, torch.nan)
    text_MD = torch.where(pairs.finite_N[:, None], pairs.text_ND, torch.nan)[first_M.to(pairs.text_ND.device)]
    of_N = of_N.to(image_ND.device)
    place_image = _places(image_ND, text_MD, of_N)
    # Of a caption the most similar of its images counts.
    best_M = torch.full((len(captions),), len(of_N), dtype=torch.int64, device=image_ND.device)
    for start in range(0, len(text_MD), BLOCK):
        similarity_cN = (text_MD[start : start + BLOCK] @ image_ND.T).nan_to_num(-torch.inf)
        own_cN = of_N == torch.arange(start, start + len(similarity_cN), device=of_N.device)[:, None]
        best_c1 = similarity_cN.masked_fill(~own_cN, -torch.inf).amax(1, keepdim=True)
        found_c = torch.isfinite(best_c1[:, 0])
        place_c = ((similarity_cN >= best_c1) & ~own_cN).sum(1)
        best_M[start : start + BLOCK] = torch.where(found_c, place_c, len(of_N))
    found = {"image_to_text": place_image, "text_to_image": best_M}
    return {f"{name}_{most}": float((place < most).double().mean()) for name, place in found.items() for most in RANKS}


def _places(query_ND: Tensor, other_MD: Tensor, own_N: Tensor) -> Tensor:
    """(N,) how many of the others are at least as similar as the own one."""
    places = []
    for start in range(0, len(query_ND), BLOCK):
        similarity_cM = (query_ND[start : start + BLOCK] @ other_MD.T).nan_to_num(-torch.inf)
        own_c1 = similarity_cM.gather(1, own_N[start : start + BLOCK, None])
        places_c = (similarity_cM >= own_c1).sum(1) - 1  # but for itself
        places.append(torch.where(torch.isfinite(own_c1[:, 0]), places_c, len(other_MD)))
    return torch.cat(places)
