"""Every status that a sample can have, and what it says: these words stay."""

from __future__ import annotations

STATUSES = {
    "ok": "it can be used",
    "decode:empty": "the image member has zero bytes",
    "decode:truncated": "the image ends before its picture does",
    "decode:not_an_image": "the bytes are no JPEG, PNG or WebP (a page, another format)",
    "decode:broken": "it begins as an image, and its decoder can't make sense of it",
    "image:missing": "no member has an image's extension",
    "image:too_large": "more than 50 megapixels, 256 MiB, 100 scans or 10,000 segments (JPEG): never decoded",
    "text:missing": "no .txt member, in a table of text or pairs; or the .json hasn't the caption's field",
    "text:empty": "the .txt (or caption) has zero bytes, or nothing but spaces",
    "text:encoding": "the .txt (or caption) isn't UTF-8",
    "text:too_large": "a .txt of more than 1 MiB: never read",
    "text:nul": "the caption of a pair holds a NUL character",
    "text:type": "the caption's field of the .json is no text",
    "tokens:missing": "no .npy member, in a table of token ids",
    "tokens:empty": "the .npy has zero bytes, or no id",
    "tokens:broken": "the .npy isn't as numpy.save writes one, or its end is missing",
    "tokens:type": "the .npy is no one-dimensional array of integers (an object array is never opened)",
    "tokens:range": "an id is negative, or beyond the vocabulary",
    "tokens:too_large": "a .npy of more than 64 MiB: never read",
    "kind:missing": "a member of a kind of one's own is not there",
    "kind:empty": "a member of a kind of one's own has zero bytes",
    "kind:too_large": "a member of a kind of one's own is larger than its `max_bytes`: never read",
    "kind:refused": "the code of a kind of one's own says why it can't be used",
    "kind:raised": "the code of a kind of one's own raised an exception",
    "kind:shape": "the code of a kind of one's own gave a field another shape, or one that it hasn't",
    "kind:dtype": "the code of a kind of one's own gave a field another type",
    "kind:target": "the target of a kind of one's own is NaN or infinite",
    "label:missing": "no .cls member, and no `label` in a .json (or what --label names)",
    "label:invalid": "the label is no integer",
    "label:range": "the label is negative, or beyond the classes",
    "dup": "the key came before in this shard; the first one counts (also what lies apart of a sample)",
    "json": "the .json can't be parsed, is nested too deep, or is no object",
    "size": "the .cls has more than 64 bytes or the .json more than 1 MiB: never read",
    "nonfinite": "the IL model's loss is NaN or infinite",
}
NEIGHBOURS = (
    "a sample's members must be neighbours: make the tar again with `tar --sort=name -cf SHARD.tar FOLDER`, or shards "
    "of the folder with `rhostream shards FOLDER --out DIR`"
)
