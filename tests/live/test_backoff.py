"""The delays between polls."""

from __future__ import annotations

from agentphone._paging.polling import PollBackoff


def test_delays_grow_to_the_maximum_and_start_again_with_each_message() -> None:
    backoff = PollBackoff(2.0, 30.0, rand=lambda: 0.0)
    assert [backoff.next_delay(has_new=False) for _ in range(9)] == [2, 3, 4.5, 6.75, 10.125, 15.1875, 22.78125, 30, 30]
    assert [backoff.next_delay(has_new=has_new) for has_new in (True, True, False)] == [2, 2, 3]


def test_jitter_only_shortens_delays() -> None:
    backoff = PollBackoff(10.0, 10.0)
    delays = {backoff.next_delay(has_new=False) for _ in range(100)}
    assert len(delays) > 50
    assert all(8 <= delay <= 10 for delay in delays)
