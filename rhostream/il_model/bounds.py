"""What a fit that is given no number of epochs costs at most: samples through its networks and looks at them."""

from __future__ import annotations

MOST_EPOCHS = 20
MOST_SAMPLES = 250_000  # through forward and backward of each network
LOOKS_PER_EPOCH = 2
LEAST_CHECKED, MOST_CHECKED = 1_000, 10_000  # samples that a network is looked at by, where there are so many
CHECKED = 5  # between those one for so many that it learns from


def most_epochs(learned: int) -> int:
    """The epochs after which it is over whatever the loss does, of a network that learns from so many samples."""
    return max(1, min(MOST_EPOCHS, -(-MOST_SAMPLES // max(learned, 1))))


def most_checked(learned: int) -> int:
    """How many samples look at a network that learns from so many: looks that cost little beside the learning."""
    return min(MOST_CHECKED, max(LEAST_CHECKED, learned // CHECKED))


def at_most(pooled: int, folds: int) -> tuple[int, int]:
    """(trained, checked) of a cross-fit of so many samples: through forward and backward, and through a forward."""
    learned = pooled * (folds - 1) // folds
    epochs, looked = most_epochs(learned), min(most_checked(learned), pooled - learned)
    # Beside the looks the best state is measured once on those samples and on as many that it did learn from.
    return folds * epochs * learned, folds * (LOOKS_PER_EPOCH * epochs + 2) * looked
