import itertools

import pytest

from frostline import timing


@pytest.mark.parametrize(("quantile", "count"), [(0.50, 11), (0.90, 64), (0.95, 130), (0.99, 662), (0.999, 6636)])
def test_samples_a_percentile_needs(quantile, count):
    assert timing.samples_needed(quantile) == count


def test_sample_drops_the_warm_up_and_keeps_both_minima():
    ticks = itertools.count(0.0, 0.25)
    calls = []
    seconds = timing.sample(lambda: calls.append(1), warmup=3, min_seconds=2.0, min_count=2, clock=lambda: next(ticks))
    assert len(calls) == len(seconds) + 3
    assert set(seconds) == {0.25}
    assert len(seconds) == 3  # started at 0.00; each turn reads the clock three times; at 2.25 both are reached


def test_summary_by_hand():
    summary = timing.summarize([4.0, 1.0, 3.0, 2.0] * 3)
    assert (summary.count, summary.mean_seconds, summary.p50_seconds) == (12, 2.5, 2.5)
    assert summary.p90_seconds is None


def test_a_percentile_is_shown_once_the_sample_supports_it():
    assert timing.summarize([1.0] * 63).p90_seconds is None and timing.summarize([1.0] * 10).p50_seconds is None
    hundred_and_thirty = timing.summarize([float(i) for i in range(1, 131)])
    assert (hundred_and_thirty.p90_seconds, hundred_and_thirty.p95_seconds) == (117.0, 124.0)
    assert hundred_and_thirty.p99_seconds is None
