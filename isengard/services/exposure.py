"""Whether strangers could use the page."""

from ipaddress import ip_address

from isengard.domain.users import read_users
from isengard.errors import InvalidSpec, LoginMissing
from isengard.settings import Settings

WAY_OUT = "set ISENGARD_AUTH=name:password"


def check_exposure(settings: Settings) -> str:
    """Return a warning when a page without a login can be reached from other machines, else nothing.

    Raises:
        LoginMissing: its address is public.
        InvalidSpec: the logins cannot be understood.
    """
    if settings.auth is not None:
        if settings.no_auth:
            raise InvalidSpec(
                "ISENGARD_AUTH asks for a login and ISENGARD_NO_AUTH for none; take one of them away"
            )
        read_users(settings.auth.get_secret_value())
        return ""
    if settings.no_auth:
        return ""
    if settings.share or settings.runpod_pod_id:
        reason = "--share gives this page" if settings.share else "a RunPod pod has"
        raise LoginMissing(
            f"{reason} a public address, and no login is set; {WAY_OUT}, or say --no-auth (ISENGARD_NO_AUTH=true) to let"
            " everybody in"
        )
    if _is_only_here(settings.host):
        return ""
    return (
        f"everybody who reaches {settings.host}:{settings.port} may use this page and see its pictures; {WAY_OUT}, or say"
        " --no-auth if that is meant"
    )


def _is_only_here(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
