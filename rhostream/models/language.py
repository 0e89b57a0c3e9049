"""Causal language models of transformers' by name, `hf:NAME`, as functions from ids to logits (B, T, V).

transformers gives at t what follows the token at t; here the logits at t are for the token at t, so the ids are moved
by one place and the first one is predicted from the model's token of a beginning, as it is at the start of a document.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rhostream.errors import MissingExtraError, UsageError

SPARE = 1024  # ids that a model may have beyond those of its tokenizer, which only fill up its matrices


class CausalLM(nn.Module):
    """A causal language model of transformers'; what is filled up stands at the end, so it is never looked back at."""

    def __init__(self, model: nn.Module, begin: int, padding: int) -> None:
        super().__init__()
        self.model, self.begin, self.padding = model, begin, padding

    def forward(self, x: Tensor) -> Tensor:
        """(B, T) int64 to (B, T, V)."""
        before = torch.cat([torch.full_like(x[:, :1], self.begin), x[:, :-1]], 1)
        before = before.masked_fill(before == self.padding, self.begin)  # the filling may be no id of the model's
        return self.model(input_ids=before, use_cache=False).logits  # type: ignore[no-any-return]


def causal_lm(name: str, *, vocabulary: int, length: int, padding: int, initial: bool = True) -> CausalLM:
    """AutoModelForCausalLM from a local folder or the hub: its weights only as safetensors, no code of the folder's.

    Without `initial` the config alone is read. Raises MissingExtraError, UsageError for what can't be loaded, for other
    ids than the samples have (`vocabulary`, the filling `padding` among them), and for too many tokens.
    """
    try:
        from transformers import AutoConfig, AutoModelForCausalLM
    except ImportError as exc:
        raise MissingExtraError.of("transformers", "hf") from exc
    try:
        config: Any = AutoConfig.from_pretrained(name, trust_remote_code=False)
        how: dict[str, Any] = {"config": config, "trust_remote_code": False}
        model = (
            AutoModelForCausalLM.from_pretrained(name, use_safetensors=True, dtype=torch.float32, **how)
            if initial
            else AutoModelForCausalLM.from_config(**how)
        )
    except Exception as exc:  # a dozen kinds, of the hub's client too
        why = " ".join(str(exc).split())[:300]
        raise UsageError(
            f"model 'hf:{name}' can't be loaded as a model of language: {why}; expected a folder with config.json and "
            "model.safetensors, or a name of the hub's"
        ) from exc
    known, ids = int(config.vocab_size), vocabulary - (padding == vocabulary - 1)
    if not ids <= known <= ids + SPARE:
        raise UsageError(
            f"model 'hf:{name}' knows {known:,} ids, the samples have {ids:,}: they were made with another tokenizer, "
            "or --tokenizer says another one"
        )
    if length > (most := getattr(config, "max_position_embeddings", length) or length):
        raise UsageError(f"model 'hf:{name}' takes {most:,} tokens, --text-length is {length:,}")
    named = [getattr(config, f"{which}_token_id", None) for which in ("bos", "eos")]
    begin = next(
        (id for given in named for id in (given if isinstance(given, list) else [given]) if id is not None), -1
    )
    if not 0 <= begin < known:
        raise UsageError(
            f"model 'hf:{name}' names no token of a beginning (bos_token_id or eos_token_id below {known:,} in its "
            "config.json), from which the first token is predicted: add one"
        )
    return CausalLM(model, begin, padding)
