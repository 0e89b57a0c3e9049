"""The models by name: built-in networks, torchvision's and timm's, or the user's own function; and their weights."""

from rhostream.models.build import NAMES, build, of_task
from rhostream.models.text import task_of
from rhostream.models.weights import load_initial, load_weights

__all__ = ["NAMES", "build", "load_initial", "load_weights", "of_task", "task_of"]
