import pytest

from settle.shrink.candidates import ThroughputModel


def test_two_files_tell_of_a_third():
    law = ThroughputModel(per_byte=1e-10, fixed=2e-3)
    sizes = (270_000_000, 100_000_000, 80_000_000)
    pace = ThroughputModel.fit([(size, law.tokens_per_second(size)) for size in sizes[:2]])
    assert pace.tokens_per_second(sizes[2]) == pytest.approx(100.0)
    assert pace.most_bytes(100.0) == pytest.approx(sizes[2], rel=1e-6)
    assert pace.most_bytes(1000.0) == 0


def test_one_file_or_contradicting_ones_still_give_an_estimate_through_the_first():
    for measured in ([(100_000_000, 50.0)], [(100_000_000, 50.0), (50_000_000, 40.0)], [(100_000_000, 50.0)] * 2):
        pace = ThroughputModel.fit(measured)
        assert pace.tokens_per_second(100_000_000) == pytest.approx(50.0)
        assert 50.0 < pace.tokens_per_second(50_000_000) < 100.0
