"""Under which address a request counts, and how wrong passwords become slow."""

import asyncio

import pytest
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from isengard.settings import Settings
from tabs.http.address import client_address
from tabs.http.attempts import FORGOTTEN_S, FREE, LONGEST_S, REMEMBERED, Attempts
from tests.clock import Clock


@pytest.fixture
def clock():
    return Clock(0.0)


@pytest.fixture
def attempts(clock):
    return Attempts(clock=clock)


@pytest.mark.parametrize(
    ("client", "address"),
    [
        (("192.0.2.7", 1), "192.0.2.7"),
        (("::ffff:192.0.2.7", 1), "192.0.2.7"),
        (("2001:db8:0:5:1:2:3:4", 1), "2001:db8:0:5::/64"),
        (("2001:db8:0:5:ffff::", 1), "2001:db8:0:5::/64"),
        (("testclient", 1), "unknown"),
        (None, "unknown"),
    ],
)
def test_a_request_counts_under_its_ipv4_address_or_its_ipv6_network(client, address):
    assert client_address({"client": client}) == address


@pytest.mark.parametrize(
    ("pod", "peer", "said", "address"),
    [
        (None, "127.0.0.1", "203.0.113.9", "203.0.113.9"),
        (None, "127.0.0.1", "1.1.1.1, 203.0.113.9", "203.0.113.9"),
        (None, "127.0.0.1", None, "127.0.0.1"),
        (None, "192.0.2.7", "203.0.113.9", "192.0.2.7"),
        (None, "10.0.0.5", "203.0.113.9", "10.0.0.5"),
        ("ab12", "100.64.0.5", "203.0.113.9", "203.0.113.9"),
        ("ab12", "100.64.0.5", "1.1.1.1, 203.0.113.9, 10.0.0.7", "203.0.113.9"),
        ("ab12", "192.0.2.7", "203.0.113.9", "192.0.2.7"),
    ],
)
def test_only_a_known_proxy_says_for_whom_it_asks(pod, peer, said, address):
    seen = []

    async def app(scope, receive, send):
        seen.append(client_address(scope))

    headers = [(b"x-forwarded-for", said.encode())] if said else []
    trusted = Settings(runpod_pod_id=pod).trusted_proxies
    scope = {"type": "http", "client": (peer, 1), "headers": headers}
    asyncio.run(ProxyHeadersMiddleware(app, trusted)(scope, None, None))
    assert seen == [address]


def fail(attempts, address, times):
    for _ in range(times):
        attempts.was_wrong(address)


def test_a_few_mistakes_cost_no_time(attempts):
    fail(attempts, "a", FREE - 1)
    assert attempts.wait("a") == 0


def test_each_further_mistake_doubles_the_wait_up_to_a_limit(attempts):
    fail(attempts, "a", FREE)
    waits = []
    for _ in range(12):
        waits.append(attempts.wait("a"))
        attempts.was_wrong("a")
    assert waits[:4] == [5, 10, 20, 40]
    assert max(waits) == waits[-1] == LONGEST_S


def test_the_wait_passes(attempts, clock):
    fail(attempts, "a", FREE + 2)
    clock.now += 19
    assert attempts.wait("a") == 1
    clock.now += 1
    assert attempts.wait("a") == 0


def test_another_address_does_not_wait(attempts):
    fail(attempts, "a", 50)
    assert attempts.wait("b") == 0


def test_a_right_password_makes_up_for_the_wrong_ones(attempts):
    fail(attempts, "a", FREE)
    attempts.was_right("a")
    assert attempts.wait("a") == 0


def test_a_quiet_address_begins_anew(attempts, clock):
    fail(attempts, "a", 50)
    clock.now += FORGOTTEN_S + 1
    attempts.was_wrong("a")
    assert attempts.wait("a") == 0


def test_any_number_of_addresses_takes_the_same_memory(attempts):
    for number in range(REMEMBERED + 10):
        attempts.was_wrong(str(number))
    assert len(attempts._wrong) == REMEMBERED
    assert "0" not in attempts._wrong
