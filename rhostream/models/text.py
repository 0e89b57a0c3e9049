"""Models of text: (B, T) int64 token ids in; three built in that are fast on two cores, and Hugging Face's by name.

text-bag     the mean of word embeddings, then two layers: (B, C) logits
text-cnn     convolutions of 3, 4 and 5 words over embeddings, max over the text (Kim 2014): (B, C) logits
text-lm      a causal transformer: (B, T, V) logits, those at t predict the token at t
hf:NAME      AutoModelForSequenceClassification of a local folder or the hub: (B, C) logits; of the task language
             AutoModelForCausalLM (`language`): (B, T, V) logits
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from rhostream.errors import MissingExtraError, UsageError
from rhostream.models.language import causal_lm

HUGGING_FACE = "hf:"


def is_text(name: str) -> bool:
    """Whether the model of that name takes text."""
    return name in TEXT_MODELS or name.startswith(HUGGING_FACE)


def task_of(name: str) -> str:
    """What a model of that name learns of a text unless it is told: its `label`, or `language`, each token from those
    before."""
    return "language" if name == "text-lm" else "label"


def build_text(name: str, *, classes: int, vocabulary: int, length: int, padding: int, task: str,
               initial: bool = True) -> nn.Module:  # fmt: skip
    """The model of that name, its weights random but for `hf:` with `initial`. Raises UsageError, MissingExtraError."""
    ids: dict[str, int] = {"vocabulary": vocabulary, "length": length, "padding": padding}
    if name.startswith(HUGGING_FACE):
        folder = name.removeprefix(HUGGING_FACE)
        if task == "language":
            return causal_lm(folder, initial=initial, **ids)
        return hugging_face(folder, classes=classes, initial=initial, **ids)
    if task != task_of(name):
        raise UsageError(f"model {name!r} learns {task_of(name)}, and these samples are made for {task}")
    return TEXT_MODELS[name](classes=classes, **ids)


class TextBag(nn.Module):
    """The mean embedding of the tokens that aren't padding, then one hidden layer (Joulin et al. 2017 and a ReLU)."""

    def __init__(
        self, *, classes: int, vocabulary: int, length: int, padding: int, width: int = 64, hidden: int = 64
    ) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(vocabulary, width, mode="mean", padding_idx=padding)
        nn.init.normal_(self.bag.weight, std=0.1)
        self.head = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, classes))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T) int64 to (B, C)."""
        return self.head(self.bag(x))  # type: ignore[no-any-return]


class TextCNN(nn.Module):
    """Convolutions over 3, 4 and 5 tokens, the maximum of each over the text, dropout, one layer (Kim 2014)."""

    def __init__(
        self,
        *,
        classes: int,
        vocabulary: int,
        length: int,
        padding: int,
        width: int = 64,
        filters: int = 64,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.short = max(5 - length, 0)  # a text shorter than the longest filter is filled up
        self.padding = padding
        self.embedding = nn.Embedding(vocabulary, width, padding_idx=padding)
        self.convolutions = nn.ModuleList(nn.Conv1d(width, filters, size) for size in (3, 4, 5))
        self.dropout, self.head = nn.Dropout(dropout), nn.Linear(3 * filters, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T) int64 to (B, C)."""
        if self.short:
            x = functional.pad(x, (0, self.short), value=self.padding)
        embedded = self.embedding(x).transpose(1, 2)
        found = [functional.relu(convolution(embedded)).amax(2) for convolution in self.convolutions]
        return self.head(self.dropout(torch.cat(found, 1)))  # type: ignore[no-any-return]


class _Layer(nn.Module):
    """A pre-norm transformer layer whose attention looks back only."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, W) to the same."""
        batch, length, width = x.shape
        parts = self.attention(self.before(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(parts[0], parts[1], parts[2], is_causal=True)
        x = x + self.out(seen.transpose(1, 2).reshape(batch, length, width))
        return x + self.feed(self.between(x))  # type: ignore[no-any-return]


class TextLM(nn.Module):
    """A small causal language model with tied embeddings; padding stands at the end, so it is never looked back at.

    The logits at t are those of the token at t: position 0 is predicted from a learned start.
    """

    def __init__(
        self,
        *,
        classes: int,
        vocabulary: int,
        length: int,
        padding: int,
        width: int = 64,
        layers: int = 2,
        heads: int = 4,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.start, self.place = nn.Parameter(torch.zeros(1, 1, width)), nn.Parameter(torch.zeros(1, length, width))
        self.layers = nn.Sequential(*(_Layer(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        for weight in (self.embedding.weight, self.start, self.place):
            nn.init.normal_(weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T) int64 to (B, T, V)."""
        before = torch.cat([self.start.expand(len(x), -1, -1), self.embedding(x[:, :-1])], 1)
        hidden = self.norm(self.layers(before + self.place[:, : x.shape[1]]))
        return hidden @ self.embedding.weight.T  # type: ignore[no-any-return]


class HuggingFace(nn.Module):
    """A classifier of transformers' as a function from ids to logits; padding is masked."""

    def __init__(self, model: nn.Module, padding: int) -> None:
        super().__init__()
        self.model, self.padding = model, padding

    def forward(self, x: Tensor) -> Tensor:
        """(B, T) int64 to (B, C)."""
        return self.model(input_ids=x, attention_mask=(x != self.padding).long()).logits  # type: ignore[no-any-return]


def hugging_face(name: str, *, classes: int, vocabulary: int, length: int, padding: int,
                 initial: bool = True) -> nn.Module:  # fmt: skip
    """AutoModelForSequenceClassification from a local folder or the hub: its weights only as safetensors, no code.

    The head is made anew where the folder has none for so many classes; without `initial` the config alone is read.
    Raises MissingExtraError, UsageError.
    """
    try:
        from transformers import AutoConfig, AutoModelForSequenceClassification
    except ImportError as exc:
        raise MissingExtraError.of("transformers", "hf") from exc
    try:
        config: Any = AutoConfig.from_pretrained(name, trust_remote_code=False, num_labels=classes)
        how: dict[str, Any] = {"config": config, "trust_remote_code": False}
        model = (
            AutoModelForSequenceClassification.from_pretrained(
                name, use_safetensors=True, ignore_mismatched_sizes=True, **how
            )
            if initial
            else AutoModelForSequenceClassification.from_config(**how)
        )
    except Exception as exc:  # a dozen kinds, of the hub's client too
        why = " ".join(str(exc).split())[:300]
        raise UsageError(
            f"model 'hf:{name}' can't be loaded: {why}; expected a folder with config.json and "
            "model.safetensors, or a name of the hub's"
        ) from exc
    known, most = int(config.vocab_size), getattr(config, "max_position_embeddings", length)
    if vocabulary > known:
        raise UsageError(
            f"model 'hf:{name}' knows {known:,} ids, its tokenizer makes {vocabulary:,}: give its own "
            f"with --tokenizer hf:{name}"
        )
    if length > most:
        raise UsageError(f"model 'hf:{name}' takes {most:,} tokens, --text-length is {length:,}")
    return HuggingFace(model, padding)


TEXT_MODELS: dict[str, Callable[..., nn.Module]] = {"text-bag": TextBag, "text-cnn": TextCNN, "text-lm": TextLM}
