"""Whose request it is, for everything that counts per address."""

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from starlette.types import Scope


def client_address(scope: Scope) -> str:
    """The address that a request is counted under: an IPv4 address, or the /64 network of an IPv6 one.

    A client can write any ``X-Forwarded-For``, so the header counts only where the direct peer is a proxy that we know:
    loopback (the tunnel of a shared link, or a proxy on this machine) and, on a RunPod pod, every peer without a public
    address (`Settings.trusted_proxies`). The server (uvicorn, ``FORWARDED_ALLOW_IPS``) applies that before any of our
    code runs: it takes the last entry that is no such proxy itself, which is the one that a proxy wrote. So there is
    no header to read here, and nobody else should.

    Whoever has one IPv6 address has the 2**64 others of that network as well. What is no address is ``unknown``.
    """
    client = scope.get("client")
    try:
        address = ip_address(client[0] if client else "")
    except ValueError:
        return "unknown"
    if isinstance(address, IPv6Address):
        mapped: IPv4Address | None = address.ipv4_mapped
        if mapped is None:
            return str(ip_network((int(address) >> 64 << 64, 64)))
        address = mapped
    return str(address)
