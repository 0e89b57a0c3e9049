"""The forms of `rhostream export` by name, for whoever offers them without what writes them."""

FORMS = ("parquet", "csv", "keep-list", "datacomp", "shards", "embedding-atlas", "fiftyone")
