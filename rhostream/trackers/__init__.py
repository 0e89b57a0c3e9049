"""What a run tells the trackers that people look at: TensorBoard, Weights & Biases, MLflow, trackio (`--track`).

    run > Tracking > a queue > a process of the tracker's own > its package

The package lives in another process: whatever it does (hang, crash, draw random numbers, print, fork), the training
never notices. To add one: a file here, and its line in `names.py`.
"""

from rhostream.trackers.names import checked_trackers
from rhostream.trackers.tracking import Tracking

__all__ = ["Tracking", "checked_trackers"]
