"""What a stream, a selector and a process group must be to make one run, and what the selector tells the stream."""

from __future__ import annotations

from rhostream.errors import UsageError
from rhostream.selection.options import Options
from rhostream.selection.ranks import Ranks
from rhostream.selection.rules import Rule
from rhostream.selection.selector import GRADIENTS, Selector
from rhostream.selection.source_quota import require_sources
from rhostream.stream.loader import Loader
from rhostream.stream.uniform_choice import UniformChoice


def require_ranks(stream: Loader, selector: Selector, ranks: Ranks, gradients: str | None) -> None:
    """Raise UsageError for a stream, a selector and a run of different ranks, and where nobody reduces gradients."""
    counts = {"the stream": stream.stream.ranks, "the selector": selector.ranks.size, "the run": ranks.size}
    if len({*counts.values()}) > 1:
        raise UsageError(
            "a run of different ranks: "
            + ", ".join(f"{what} has {n}" for what, n in counts.items())
            + "; where torch.distributed is initialised all three take its default group (group=None, "
            "ranks=1 for none)"
        )
    if gradients is not None:
        if gradients not in GRADIENTS:
            raise UsageError(f"gradients {gradients!r}: expected one of {', '.join(GRADIENTS)}")
        selector.reduced = gradients
    if not ranks.alone and selector.reduced is None:
        raise UsageError(
            f"a run on {ranks.size} ranks, and nothing says how their gradients are reduced: give the "
            'selector the model wrapped in DistributedDataParallel, or say gradients="mean" (averaged) '
            'or "sum"'
        )


def choose_before_decoding(stream: Loader, options: Options, rule: Rule, batch_size: int, seed: int) -> None:
    """What a selector will keep by chance is chosen by the stream, which then decodes nothing else.

    Raises UsageError for bounds of sources that no batch can meet.
    """
    schedule, always, candidates = options.kept_schedule, rule.score is None, stream.stream
    sources = candidates.join_settings.sources
    names = None if sources is None else sources.names
    options.require_sizes(batch_size, candidates.buffer_size)
    require_sources(options.source_quota, names, schedule.sizes(batch_size, candidates.buffer_size))
    if (always or schedule.has_uniform_steps) and not any(isinstance(p, UniformChoice) for p in candidates.prefilters):
        candidates.prefilters += (
            UniformChoice(
                batch_size,
                seed,
                schedule,
                options.quota,
                always,
                candidates.numbering,
                options.source_quota,
                names or (),
            ),
        )
