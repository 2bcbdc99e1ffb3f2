import pytest

from isengard.domain.identity import IdentityGain, gain, similarity

EAST, NORTH, WEST = (1.0, 0.0), (0.0, 1.0), (-1.0, 0.0)


def test_similarity_is_the_mean_cosine_to_all_references():
    assert similarity(EAST, [EAST, NORTH]) == pytest.approx(0.5)
    assert similarity(WEST, [EAST]) == pytest.approx(-1)


def test_the_ceiling_compares_each_reference_to_the_others_only():
    found = gain(references=[EAST, EAST, NORTH], before=[WEST], after=[EAST])
    assert found.ceiling == pytest.approx((0.5 + 0.5 + 0) / 3)
    assert found.before == pytest.approx(-2 / 3)
    assert found.after == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("before", "after", "ceiling", "share"),
    [(0.1, 0.7, 0.9, 0.75), (0.1, 0.1, 0.9, 0), (0.1, 0.9, 0.9, 1), (0.9, 0.95, 0.9, 1)],
)
def test_the_share_is_the_part_of_the_way_that_was_gone(before, after, ceiling, share):
    assert IdentityGain(before=before, after=after, ceiling=ceiling).share == pytest.approx(share)
