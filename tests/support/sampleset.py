"""Labels for statistics, without an image worth looking at."""

from __future__ import annotations

import numpy as np

from shards.sample import Sample, SampleSet


def many(count: int) -> SampleSet:
    """Labels for statistics: `count` samples, classes in turn, no image worth looking at."""
    black = np.zeros((2, 2), np.uint8)

    def load(i: int) -> Sample:
        return Sample(key=f"many-{i}", label=i % 10, extension="png", content=b"", facts={})

    return SampleSet(
        split="train",
        labels=np.arange(count) % 10,
        class_names=tuple("abcdefghij"),
        load=load,
        pixels=lambda i: black,
        confused=((6, 0),),
    )
