"""One room of chance: draws that are functions of their words."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rhostream.randomness import fraction, generator, torch_seed

WORDS = st.lists(st.one_of(st.integers(), st.text(max_size=20)), min_size=1, max_size=5)


@given(WORDS)
def test_a_draw_is_a_function_of_its_words(words: list[object]) -> None:
    assert (generator(*words).random(4) == generator(*words).random(4)).all()
    assert fraction(*words) == fraction(*words) and 0 <= fraction(*words) < 1
    assert torch_seed(*words) == torch_seed(*words) and 0 <= torch_seed(*words) < 2**62


def test_fractions_are_evenly_spread_and_other_words_give_other_draws() -> None:
    drawn = np.array([fraction("spread", i) for i in range(20_000)])
    assert abs(drawn.mean() - 0.5) < 0.01
    assert np.histogram(drawn, 10, (0, 1))[0].min() > 1_800
    assert len({torch_seed("seed", i) for i in range(1_000)}) == 1_000


def test_the_draws_stay_what_they_are() -> None:
    """The order of every pass hangs on them: they may not change between versions."""
    assert generator(0, "shards", 0).permutation(8).tolist() == [2, 1, 4, 0, 7, 6, 3, 5]
    assert (fraction(0, "x"), torch_seed(0, "x")) == (0.5369071473345418, 2476047184556440162)
