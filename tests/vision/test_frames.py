"""Frame choice: deterministic, ascending, covering, and jittered only by a seed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mm.vision import sample_frames


def test_uniform_has_both_ends():
    assert sample_frames(10, 4) == [0, 3, 6, 9]
    assert sample_frames(10, 1) == [4]
    assert sample_frames(2, 4) == [0, 0, 1, 1]


def test_segments_take_the_middle_or_a_seeded_frame_of_each():
    assert sample_frames(12, 3, "segment") == [2, 6, 10]
    draws = {tuple(sample_frames(12, 3, "segment", seed=seed)) for seed in range(30)}
    assert len(draws) > 10
    assert all(a // 4 == 0 and b // 4 == 1 and c // 4 == 2 for a, b, c in draws)
    assert sample_frames(12, 3, "segment", seed=5) == sample_frames(12, 3, "segment", seed=5)


def test_rate_thins_and_never_invents_frames():
    assert sample_frames(10, rule="fps", source_fps=30, target_fps=10) == [0, 3, 6, 9]
    assert sample_frames(4, rule="fps", source_fps=10, target_fps=60) == [0, 1, 2, 3]
    assert sample_frames(100, 3, "fps", source_fps=10, target_fps=1) == [0, 50, 90]
    assert sample_frames(10, rule="fps", source_fps=25, target_fps=10) == [0, 2, 5, 7]


@given(st.integers(1, 400), st.integers(1, 40), st.sampled_from(["uniform", "segment"]), st.integers(0, 9))
def test_indices_are_valid_ascending_and_of_the_asked_number(count, num, rule, seed):
    for chosen in (sample_frames(count, num, rule), sample_frames(count, num, "segment", seed=seed)):
        assert len(chosen) == num and chosen == sorted(chosen) and chosen[0] >= 0 and chosen[-1] < count


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"count": 0, "num": 1}, "at least one frame"),
        ({"count": 5, "num": 0}, "at least one frame"),
        ({"count": 5}, "needs num"),
        ({"count": 5, "num": 2, "seed": 1}, "has no effect with rule='uniform'"),
        ({"count": 5, "num": 2, "target_fps": 1.0}, "no effect"),
        ({"count": 5, "rule": "fps"}, "positive rates"),
        ({"count": 5, "num": 2, "rule": "random"}, "unknown frame rule 'random'; known: uniform, segment, fps"),
    ],
)
def test_bad_arguments(args, message):
    with pytest.raises(ValueError, match=message):
        sample_frames(**args)
