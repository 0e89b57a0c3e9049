"""Shards out of a folder of images: what `rhostream shards` and the repository's own shard maker are made of."""
