"""What several verbs say alike of a setting, and how a config is shown."""

from __future__ import annotations

from rhostream.samples.names import BUILT_IN

SHARDS = (
    "Tar shards: paths, s3:// gs:// https:// URLs, brace ranges, patterns, folders, or @FILE with one of these a line."
)
ROOT = "Name the place of the shards, so that tables and logs survive when the data moves."
WORKERS = "Processes that read and decode."
MODEL = "Built-in name, torchvision:NAME, timm:NAME or package.module:function; docs/models.md has them."
INIT = "Start from these safetensors weights; the classifier may differ."
TOKENIZER = "Of text: bytes, words:N, hf:NAME; ids:N for .npy arrays and flat .bin or .npy files of ids."
END_OF_TEXT = (
    "Of ids packed into sequences: the id that ends a document. The token behind it, which nothing before it tells, is "
    "left out of losses."
)
TEXT_LENGTH = "Tokens of a text; longer ones are cut."
LOSS = (
    "cross_entropy, squared_error, binary_cross_entropy (of logits), or your module:function of (output, target): "
    "one loss a sample."
)
KIND = "A kind of samples of your own, package.module:name (docs/kinds.md); its code is imported only so."
CONTENT = f"What samples are: {', '.join(BUILT_IN)}."
LOOKED_AT = "as most of those looked at"
CAPTION = "Of pairs: the field of the .json (caption, a.b) that holds the caption."
TASK = "What a model of text learns."
RESIZE = "How images become squares: the centre, all of it squashed, or all of it padded with grey."
CHOSEN_RESIZE = "crop where that cuts off at most a tenth of some images' pixels, else squash"
HARDWARE = "how fast a step is made, and where, doesn't change it"
TASKS = ("label", "language")


def brief_config(config: object) -> str:
    """The `__repr__` of a config; see `written.brief`."""
    from rhostream.config.written import brief  # --help has no use for the storage below it

    return brief(config)
