"""Causal language models of transformers' by name, `hf:NAME`, as functions from ids to logits (B, T, V).

transformers gives at t what follows the token at t; here the logits at t are for the token at t, so the ids are moved
by one place and the first one is predicted from the model's token of a beginning, as it is at the start of a document.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rhostream.errors import UsageError
from rhostream.models import hub

SPARE = 1024  # ids that a model may have beyond those of its tokenizer, which only fill up its matrices


class CausalLM(nn.Module):
    """A causal language model of transformers', its logits at t those of the token at t: the first is predicted from
    `begin`. Nothing is masked: padding stands at the end, where no other token looks back at it."""

    def __init__(self, model: nn.Module, vocabulary: int, begin: int) -> None:
        super().__init__()
        self.model, self.vocabulary, self.begin = model, vocabulary, begin

    def forward(self, x: Tensor) -> Tensor:
        """(B, T) int64 to (B, T, V)."""
        before = torch.cat([torch.full_like(x[:, :1], self.begin), x[:, :-1]], 1)
        before = before.masked_fill(before >= self.vocabulary, self.begin)  # the filling of arrays: no id of its own
        return self.model(input_ids=before, use_cache=False).logits  # type: ignore[no-any-return]


def begin_of(name: str, config: Any) -> int:
    """The id that the first token of a text is predicted from. Raises UsageError."""
    for token in (config.bos_token_id, config.eos_token_id):
        if isinstance(token, int) and 0 <= token < config.vocab_size:
            return token
    raise UsageError(
        f"model 'hf:{name}' names neither a token that begins a text nor one that ends it (bos_token_id or "
        f"eos_token_id below {config.vocab_size:,}), from which the first token is predicted: its config.json has to"
    )


def causal_lm(name: str, *, vocabulary: int, length: int, padding: int, initial: bool = True) -> CausalLM:
    """AutoModelForCausalLM from a local folder or the hub: its weights only as safetensors, no code of the folder's.

    Without `initial` the config alone is read. Raises MissingExtraError, UsageError for what can't be loaded, for other
    ids than the samples have (`vocabulary`, where the filling `padding` is one behind them), and for too many tokens.
    """
    config = hub.config_of(name)
    known, ids = int(getattr(config, "vocab_size", 0)), vocabulary - (padding == vocabulary - 1)
    if not ids <= known <= ids + SPARE:
        raise UsageError(
            f"model 'hf:{name}' knows {known:,} ids, the samples have {ids:,}: they were made with another tokenizer, "
            "or --tokenizer says another one"
        )
    if length > (most := getattr(config, "max_position_embeddings", None) or length):
        raise UsageError(f"model 'hf:{name}' takes {most:,} tokens, --text-length is {length:,}")
    begin = begin_of(name, config)
    load = hub.with_stored_weights if initial else hub.with_random_weights
    return CausalLM(load(name, "AutoModelForCausalLM", config), known, begin)
