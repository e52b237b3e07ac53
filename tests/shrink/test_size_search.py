import math

import pytest

from settle.shrink.search import SearchedSize, find_size


def measured(value, step=1):
    asked = []

    def measure(size):
        asked.append(size)
        size = size // step * step
        return SearchedSize(size, value(size))

    return measure, asked


@pytest.mark.parametrize("wanted", [0.02, 0.2, 0.9])
def test_a_crossing_is_found_within_the_tolerance(wanted):
    measure, asked = measured(lambda size: math.exp(-size / 250e6) + 1e-4 * (1e9 - size) / 1e9)
    found = find_size(measure, 10_000_000, 2_000_000_000, wanted)
    assert found.above.value > wanted >= found.within.value
    assert found.within.num_bytes <= found.above.num_bytes * 1.01
    assert len(asked) <= 7


def test_no_size_is_on_one_side():
    measure, asked = measured(lambda size: 1 / size)
    nothing = find_size(measure, 100, 1000, 1e-9)
    assert nothing.within is None and nothing.above.num_bytes == 1000
    everything = find_size(measure, 100, 1000, 10.0)
    assert everything.above is None and everything.within.num_bytes == 100
    assert len(asked) == 4


def test_sizes_come_in_steps():
    measure, asked = measured(lambda size: 1000 - size, step=100)
    found = find_size(measure, 100, 900, 450, tolerance=0.0)
    assert (found.above.num_bytes, found.within.num_bytes) == (500, 600)
    assert len(asked) <= 8


def test_a_guess_comes_first_and_noise_lets_no_small_file_pass():
    values = {100: 0.3, 200: 0.09, 300: 0.12, 400: 0.05}
    asked = []

    def measure(size):
        asked.append(size)
        nearest = min(values, key=lambda known: abs(known - size))
        return SearchedSize(nearest, values[nearest])

    found = find_size(measure, 100, 400, 0.1, guess=290, tolerance=0.0)
    assert asked[0] == 290
    assert found.within.num_bytes == 400 and found.above.num_bytes == 300
