"""The paper's numbers as it prints them (Mindermann et al. 2022), kept apart from ours: data only."""

from __future__ import annotations

from dataclasses import dataclass

METHODS = ("loss", "grad_norm", "grad_norm_is", "svp", "irreducible", "uniform", "rho")


@dataclass(frozen=True)
class Row:
    """A line of Table 2: epochs to each target by method, None for NR, and final accuracy in per cent where printed."""

    dataset: str
    targets: tuple[float, float]
    epochs: dict[str, tuple[int | None, int | None]]
    final: dict[str, float]


def _row(dataset: str, low: float, high: float, *cells: str) -> Row:
    """Cells as printed: `81/129(90)`, `NR(61)`, in the order of `METHODS`."""
    epochs, final = {}, {}
    for method, cell in zip(METHODS, cells, strict=True):
        reached, _, rest = cell.partition("(")
        first, _, second = reached.partition("/")
        epochs[method] = tuple(None if x in ("NR", "") else int(x) for x in (first, second))
        if rest:
            final[method] = float(rest.rstrip(")"))
    return Row(dataset, (low, high), epochs, final)  # type: ignore[arg-type]


TABLE2 = (
    _row("clothing1m", 60, 69, "8/NR(65)", "13/NR(64)", "2/9(70)", "NR(55)", "NR(48)", "2/30(70)", "1/2(72)"),
    _row("cifar10", 80, 87.5, "81/129(90)", "NR(61)", "57/139(89)", "NR(55)", "NR(60)", "79/NR(87)", "39/65(91)"),
    _row("cifar10-noisy", 75, 85, "NR(28)", "NR(23)", "57/NR(84)", "NR(48)", "NR(62)", "62/NR(85)", "27/49(91)"),
    _row("cifar100", 40, 52.5, "138/NR(42)", "139/NR(42)", "71/132(55)", "NR(18)", "93/NR(43)", "65/133(54)",
         "48/77(61)"),
    _row("cifar100-noisy", 40, 47.5, "NR(4)", "NR(4)", "94/142(48)", "NR(14)", "89/NR(43)", "79/116(50)", "49/65(60)"),
    _row("cinic10", 70, 77.5, "NR(36)", "NR(50)", "34/64(82)", "NR(39)", "NR(60)", "38/97(80)", "27/38(83)"),
    _row("cinic10-noisy", 60, 67.5, "NR(16)", "NR(16)", "22/35(79)", "NR(39)", "30/NR(64)", "24/38(78)", "13/17(82)"),
    _row("sst2", 82.5, 90, "8/NR(87)", "2/4(91)", "3/NR(89.7)", "NR(66)", "7/NR(83)", "1/6(90)", "1/3(92)"),
    _row("cola", 75, 80, "8/NR(78)", "6/NR(79)", "16/NR(78)", "NR(62)", "NR(69)", "34/NR(76)", "3/39(80)"),
)  # fmt: skip
# Table 1: Spearman against approximation 0.
TABLE1 = {"1a": 0.75, "1b": 0.76, "2": 0.63, "3": 0.51}
# Table 3, no holdout, (target, epochs uniform, epochs rho).
TABLE3 = {"cifar10": ((80, 39, 17), (90, 177, 47)), "cifar100": ((50, 47, 22), (65, 142, 87)),
          "cinic10": ((70, 37, 26), (80, 146, 70))}  # fmt: skip
# Table 4, (target, epochs approximated, epochs original).
TABLE4 = {"cifar10": ((60, 18, 13), (75, 30, 24), (90, 102, None)),
          "cifar100": ((30, 35, 21), (45, 58, None), (60, 123, None)),
          "cinic10": ((55, 12, 12), (65, 19, 21), (75, 32, None))}  # fmt: skip


def targets(dataset: str) -> tuple[float, ...]:
    """The accuracies (shares of 1) whose epochs Table 2 gives for a set."""
    return tuple(target / 100 for row in TABLE2 if row.dataset == dataset for target in row.targets)


def printed(dataset: str, method: str) -> str:
    """A cell of Table 2 as it reads there."""
    row = next(row for row in TABLE2 if row.dataset == dataset)
    first, second = ("NR" if x is None else str(x) for x in row.epochs[method])
    return f"{first} / {second} epochs to {row.targets[0]:g} / {row.targets[1]:g} %"
