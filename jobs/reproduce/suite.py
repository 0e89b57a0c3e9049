"""All experiments, in the order in which a suite runs them: those that share runs stand together."""

from __future__ import annotations

from jobs.reproduce import (
    cheap_il,
    cifar10n,
    equal_cost,
    failure_modes,
    figure2,
    figure3,
    figure6,
    figure8,
    figure9,
    pretrained,
    search,
    section6,
    single_pass,
    table2,
    table3,
    table4,
    text,
)
from jobs.reproduce.settings import Experiment

EXPERIMENTS: dict[str, Experiment] = {
    module.EXPERIMENT.name: module.EXPERIMENT
    for module in (table2, figure3, figure6, table3, table4, single_pass, search, cheap_il, figure8, section6, figure9,
                   figure2, failure_modes, cifar10n, pretrained, text, equal_cost)
}  # fmt: skip
