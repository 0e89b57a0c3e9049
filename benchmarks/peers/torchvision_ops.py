"""Lets torchvision be imported beside a CPU build of torch: import this file first.

torchvision's wheel finds its compiled operators only beside the CUDA build of torch. Without them its import fails when
it describes the shapes of two operators that nobody declared. Declared they are enough; nothing here ever calls them.
"""

from __future__ import annotations

import torch

DECLARED = torch.library.Library("torchvision", "DEF")  # kept: the declarations end with the object
for name in ("nms", "qnms"):
    DECLARED.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
