"""The loader benchmark's sides: rhostream, bare loops, webdataset, and peers that live in an environment of their own."""
