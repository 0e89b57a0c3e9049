"""The sides of the loader benchmark: rhostream, webdataset, and peers that live in an environment of their own."""
