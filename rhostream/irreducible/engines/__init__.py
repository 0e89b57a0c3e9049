"""Who makes the parts of the shards that a table lacks: processes of this machine, or actors of a Ray cluster."""
