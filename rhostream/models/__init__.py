"""The models by name: the paper's small networks, or the user's own function."""

from rhostream.models.build import NAMES, build, load_weights
from rhostream.models.text import task_of

__all__ = ["NAMES", "build", "load_weights", "task_of"]
