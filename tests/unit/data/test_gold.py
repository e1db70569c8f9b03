"""Gold times that pass are those that a reward can use."""

import numpy as np
import pytest

from mmrl.data.gold import settle
from mmrl.errors import DataError
from mmrl.types import Gold, Media, Sample

CLIP = Media(kind="video", key="v", data=np.zeros((2, 4, 4, 3), np.uint8), times=(1.0, 3.0), span=(1.0, 5.0))


def sample(*spans):
    return Sample(id="0", messages=(), gold=Gold(spans=spans))


@pytest.mark.parametrize("span", [(1.0, 5.0), (0.2, 2.0), (4.9, 5.9), (0.0, 6.0)])
def test_a_span_that_is_rounded_outwards_is_kept(span):
    assert settle(sample(span), [CLIP]).gold.spans == (span,)


@pytest.mark.parametrize("span", [(5.2, 5.9), (5.0, 5.5), (0.2, 1.0), (4.0, 6.5), (-0.5, 2.0)])
def test_a_span_of_which_nothing_can_be_seen_or_too_much_is_outside_is_refused(span):
    with pytest.raises(DataError, match=r"^spans\.0: gold .* lies outside the medium's 1 s to 5 s"):
        settle(sample(span), [CLIP])
