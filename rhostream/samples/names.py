"""The kinds that are built in: the name of each, and its class. Imports nothing, as the help of a verb names them."""

# A sample with members of several kinds is of the first of these.
BUILT_IN = {
    "image": "rhostream.samples.image:ImageKind",
    "text": "rhostream.samples.text:TextKind",
    "tokens": "rhostream.samples.tokens:TokensKind",
    "pair": "rhostream.samples.pair:PairKind",
}
