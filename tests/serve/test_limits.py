"""Requests and decoded images are counted while they are in progress."""

from contextlib import ExitStack

import pytest

from unime.serve.errors import ApiError
from unime.serve.limits import Admission, Limits


def test_requests_beyond_the_limit_are_refused_until_one_has_finished():
    admission = Admission(Limits(max_requests=2))
    with admission.request():
        with admission.request(), pytest.raises(ApiError, match="busy with 2 requests") as caught:
            with admission.request():
                pass
        assert (caught.value.status, caught.value.retry_after) == (429, 1)
        with admission.request():
            assert admission.requests == 2
    assert admission.requests == 0


def test_decoded_images_take_at_most_the_memory_of_sixteen_largest_requests():
    admission = Admission(Limits(max_megapixels=1))
    with pytest.raises(ValueError, match="1.5 megapixels together, the limit is 1:"), admission.decoded(1_500_000):
        pass
    with ExitStack() as contexts:
        for _ in range(16):
            contexts.enter_context(admission.decoded(1_000_000))
        with pytest.raises(ApiError, match="memory for images is full") as caught, admission.decoded(1):
            pass
        assert (caught.value.status, caught.value.retry_after) == (429, 1)
    assert admission.pixels == 0
    with admission.decoded(1_000_000):
        assert admission.pixels == 1_000_000


def test_a_request_that_fails_is_no_longer_counted():
    admission = Admission(Limits(max_requests=1))
    for _ in range(2):
        with pytest.raises(KeyError), admission.request(), admission.decoded(5):
            raise KeyError
    assert (admission.requests, admission.pixels) == (0, 0)
