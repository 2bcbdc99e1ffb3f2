"""Tells an address of the user's own choice what happened here."""

import logging
from collections.abc import Mapping
from enum import StrEnum
from typing import Any
from urllib.parse import urlsplit

import httpx2

from isengard import __version__

log = logging.getLogger(__name__)

TIMEOUT_S = 10.0
#: Answers after which another try may succeed, beside 500 and above. Source: RFC 9110, RFC 8470, RFC 6585.
TRY_AGAIN = frozenset({408, 425, 429})


class Outcome(StrEnum):
    """What became of a message."""

    TAKEN = "taken"
    REFUSED = "refused"  # it would be again
    AWAY = "away"  # it may be taken later


class Webhook:
    """Sends JSON to one address. The address holds its password, so that only its host is ever logged."""

    def __init__(self, url: str) -> None:
        self._url, self._host = url, urlsplit(url).hostname

    def post(self, message: Mapping[str, Any]) -> Outcome:
        """One try. A redirect is not followed: nobody chose where it leads. What is answered is not read."""
        headers = {"user-agent": f"isengard/{__version__}"}
        try:
            with httpx2.stream(
                "POST",
                self._url,
                json=dict(message),
                headers=headers,
                timeout=TIMEOUT_S,
                follow_redirects=False,
            ) as answer:
                said, outcome = str(answer.status_code), _outcome(answer.status_code)
        except httpx2.HTTPError as error:
            said, outcome = type(error).__name__, Outcome.AWAY
        except httpx2.InvalidURL as error:
            said, outcome = type(error).__name__, Outcome.REFUSED
        tell = log.info if outcome is Outcome.TAKEN else log.warning
        tell("webhook answered", extra={"host": self._host, "answer": said, "outcome": outcome})
        return outcome


def _outcome(status: int) -> Outcome:
    if 200 <= status < 300:
        return Outcome.TAKEN
    return Outcome.AWAY if status >= 500 or status in TRY_AGAIN else Outcome.REFUSED
