"""What `train` was asked for: checked before any work, and what of it a resume must agree with."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from rhostream import storage
from rhostream.config.train import TrainConfig
from rhostream.errors import UsageError
from rhostream.models import task_of
from rhostream.randomness import DRAWS
from rhostream.runs.turns import Asked
from rhostream.samples.kind import Kind
from rhostream.selection.losses import LossFunction, find_loss, loss_name, require_loss_of_samples
from rhostream.selection.options import Options
from rhostream.selection.pairs import require_whole_batch
from rhostream.selection.rules import Rule, find_rule
from rhostream.selection.source_quota import require_sources
from rhostream.selection.tokens import RULES as LANGUAGE_RULES
from rhostream.selection.tokens import TokenShare
from rhostream.setting import ALWAYS, ASKED, defaults_of, settings_of
from rhostream.stream.augment import check_name
from rhostream.stream.budget import Budget
from rhostream.stream.dataset import CandidateStream
from rhostream.stream.deny_list import check_deny_list
from rhostream.stream.keep_list import list_url
from rhostream.tables.il import fingerprint
from rhostream.trackers.names import AskedTracker, checked_trackers
from rhostream.training.augment import KINDS
from rhostream.training.cascade import Shortlist, parse_shortlist, require_scorers


@dataclass(frozen=True, kw_only=True, repr=False)
class Settings(TrainConfig):
    """The config of a run, all of it checked, and what follows from it. Raises UsageError and its kin."""

    @classmethod
    def of_config(cls, config: TrainConfig) -> Settings:
        return cls(**{field.name: getattr(config, field.name) for field in fields(config)})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind is not None and self.content is not None:
            raise UsageError(f"--content {self.content} is for built-in kinds: give it or --kind {self.kind}")
        if self.keep_list is not None:
            list_url(self.keep_list, "keep_list")
        if self.deny is not None:
            check_deny_list(self.deny)
        check_name(self.augment, KINDS)
        _ = self.tokens, self.budget, self.asked, self.trackers  # a share, a step or a name that can't be
        if not isinstance(self.shadow, str | None):
            object.__setattr__(self, "shadow", ",".join(self.shadow))
        require_loss_of_samples(self.loss)
        rule, options = self.found_rule, self.options
        options.check(rule, shortlist=self.shortlist is not None, live=True)
        require_scorers(self.scorers, self.listed, self._unfit_for_scorers())
        self.check_quota(self.classes)
        options.require_sizes(self.batch_size, self.buffer_size)
        if self.sources is None:
            require_sources(options.source_quota, None, ())
        if not rule.live and (self.il_model is not None or self.il_code is not None):
            raise UsageError(
                "--il-model and --il-code are the IL model that learns along, which the rule "
                f"{rule.name} has none of; they go with --rule rho_updated"
            )

    def check_quota(self, classes: int | None) -> None:
        """Raise UsageError for a class quota that a batch of some step can't have, as far as `classes` are known."""
        if (quota := self.options.quota) is not None:
            for n in self.options.kept_schedule.sizes(self.batch_size, self.buffer_size):
                quota.check(n, classes)

    @property
    def options(self) -> Options:
        return Options(**{field.name: getattr(self, field.name) for field in fields(Options)})

    @property
    def augment_by_sample(self) -> str:
        """The augmentation that a stream has; "none" for flips and shifts, whose draws go by the step."""
        return "none" if self.augment in KINDS else self.augment

    @property
    def own_loss(self) -> LossFunction | None:
        """The loss asked for; None for what the model has by default."""
        return None if self.loss == "cross_entropy" else find_loss(self.loss)

    @property
    def found_rule(self) -> Rule:
        return find_rule(self.rule)

    @property
    def listed(self) -> Shortlist | None:
        return parse_shortlist(
            self.shortlist,
            rule=self.rule,
            buffer_size=self.buffer_size,
            batch_size=self.batch_size,
            view_size=self.view_size,
        )

    def _unfit_for_scorers(self) -> Iterator[str]:
        """What a row's score doesn't say by itself, or what isn't carried with a row from rank to rank."""
        rule = self.found_rule
        if rule.sampled or rule.joint or rule.live or rule.needs_draws or rule.takes_columns:
            yield f"--rule {rule.name}"
        own = {name: getattr(self, name) for name in ("view_size", "token_share", "update_size")}
        asked = {**self.options.changed(), **own}
        yield from (f"--{name.replace('_', '-')}" for name, value in asked.items() if value is not None)
        if self.augment not in KINDS:
            yield f"--augment {self.augment}"

    @property
    def compiles_whole(self) -> bool:
        """Whether the model is compiled as one; else, where blocks are gathered or recomputed, each by itself."""
        return self.compile and self.parallel == "ddp" and not self.activation_checkpointing

    @property
    def budget(self) -> Budget:
        """What the test set may hold that can't be used. Raises UsageError."""
        return Budget(fraction=self.max_bad_fraction, samples=self.max_bad_samples)

    @property
    def trackers(self) -> tuple[AskedTracker, ...]:
        """Where the run is shown. Raises UsageError and its kin."""
        return checked_trackers(self.track)

    @property
    def asked(self) -> Asked:
        """Where the run is to turn. Raises UsageError."""
        return Asked(from_step=self.from_step, skip_buffers=self.skip_buffers, grow=self.grow)

    @property
    def uses_il(self) -> bool:
        return self.found_rule.needs_il or self.band is not None or self.token_share is not None

    @property
    def asked_tokenizer(self) -> str | None:
        """As given; a Hugging Face model's own where none is, but of language, whose il is of the table's tokens."""
        own = self.model.startswith("hf:") and self.found_task != "language"
        return self.tokenizer or (self.model if own else None)

    @property
    def found_task(self) -> str:
        """What the model learns of a text."""
        return self.task or task_of(self.model)

    @property
    def at_most(self) -> int | None:
        """Samples of an update, None for all that was kept: of `--ratio auto` a batch, whatever the share."""
        return self.batch_size if self.update_size is None and self.options.auto else self.update_size

    @property
    def tokens(self) -> TokenShare | None:
        """Which tokens the gradient goes through, None for all. Raises UsageError."""
        return None if self.token_share is None else TokenShare(self.token_share)

    def require_fitting(self, kind: Kind) -> None:
        """Raise UsageError for an option that samples of this kind don't have."""
        if not kind.pictures and self.augment in KINDS[1:]:
            raise UsageError(f"--augment {self.augment} is for images, and these samples are {kind.holds}")
        language = kind.task == "language"
        if self.token_share is not None and not language:
            raise UsageError(
                f"--token-share {self.token_share:g} is for models of language (text-lm), which have a "
                "loss for each token"
            )
        if language and ":" not in self.rule and self.rule not in LANGUAGE_RULES:
            raise UsageError(
                f"--rule {self.rule} looks at the logits of classes, which language has not; expected one "
                f"of {', '.join(LANGUAGE_RULES)}"
            )
        loss_name(kind, self.loss)
        require_whole_batch(find_loss(self.loss), self.accumulate, self.at_most, self.shortlist)
        if self.mixup and not kind.example().is_floating_point():
            raise UsageError(
                f"--mixup {self.mixup:g} is of inputs that are numbers in between, and these samples are {kind.holds}, "
                "which can't be mixed"
            )
        if self.label_smoothing and (kind.target is not None or language or self.loss != "cross_entropy"):
            raise UsageError(
                f"--label-smoothing {self.label_smoothing:g} is of the cross-entropy of classes, and this run's "
                f"loss is {loss_name(kind, self.loss)}"
            )
        if kind.target is not None:
            if self.classes is not None:
                raise UsageError(f"--classes {self.classes} is for classes, and {kind.target_in_words}")
            self.options.require_no_classes(self.found_rule, kind.target_in_words, loss_cap=self.loss_cap)
        if language and self.options.quota is not None:
            raise UsageError(f"--class-quota {self.class_quota} is for samples with labels, which language has not")
        if not kind.pictures and self.deduplicate is not None:
            raise UsageError(
                f"--deduplicate {self.deduplicate:g} compares pictures, and these samples are {kind.holds}"
            )
        shadows = [rule.name for rule in self.options.shadows if language and rule.name not in LANGUAGE_RULES]
        if shadows:
            raise UsageError(
                f"--shadow {shadows[0]} looks at the logits of classes, which language has not; expected "
                f"some of {', '.join(LANGUAGE_RULES)}"
            )
        if language and self.loss_cap:
            raise UsageError("--loss-cap clips at the loss of a guess among classes, which language has not")

    def pinned(self, stream: CandidateStream, classes: int | None) -> dict[str, Any]:
        """What decides which samples are kept and what the weights become: a resume must agree with all of it."""
        proxied = self.listed is not None and self.listed.kind == "proxy"
        table, defaults, says = stream.table, defaults_of(self), settings_of(self)
        options = {field.name for field in fields(Options)}  # which say themselves what was asked for
        asked = [name for name, one in says.items() if one.pin == ASKED and name not in options]
        return {
            **{name: getattr(self, name) for name, one in says.items() if one.pin == ALWAYS},
            # Only what was asked for, so that a run of before there were options is resumed as what it is.
            **self.options.changed(),
            **{name: getattr(self, name) for name in asked if getattr(self, name) != defaults[name]},
            **({"il_lr_scale": self.il_lr_scale} if self.found_rule.live else {}),
            "init": self.init and storage.redact(self.init),
            "il": table.info.fingerprint if self.uses_il else None,
            "shards": fingerprint({"names": list(table.names), "counts": table.counts.tolist()}),
            "lanes": stream.lanes,
            "classes": classes,
            "draws": DRAWS,
            "decoder": stream.decoder_name,
            "keep_list": None if self.keep_list is None else _sha256(self.keep_list),
            "proxy_model": self.proxy_model if proxied else None,
            # One choice for the whole buffer: the number of ranks changes nothing but float noise.
            "selection": "global",
            **stream.preprocess.pins(),
        }


def _sha256(url: str) -> str:
    return hashlib.sha256(storage.read_bytes(list_url(url, "keep_list"))).hexdigest()
