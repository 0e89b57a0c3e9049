"""One frozen, keyword-only value a verb: what the command line, run.json, resumes, reports and the docs are made of.

    a field of a config (`rhostream.setting`) > options of the command line | a file of --config | keywords of Python
"""

from rhostream.config.estimate import EstimateConfig
from rhostream.config.offline import ComputeILConfig, FitILConfig, IndexConfig
from rhostream.config.train import TrainConfig

__all__ = ["ComputeILConfig", "EstimateConfig", "FitILConfig", "IndexConfig", "TrainConfig"]
