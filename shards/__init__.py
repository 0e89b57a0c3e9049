"""Making and checking WebDataset shards: `python -m shards.make RECIPE`, `python -m shards.check URL...`.

A program of the repository that stands on the library; the wheel doesn't install it.
"""
