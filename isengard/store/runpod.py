"""What this pod may ask of RunPod."""

import httpx2
from pydantic import SecretStr

from isengard.errors import PodNotStopped
from isengard.logs import redact

#: Version 2 of RunPod's REST API; version 1 was switched off in November 2026. Source: docs.runpod.io/api-reference-v2.
ENDPOINT = "https://api.runpod.io/v2"
TIMEOUT_S = 20.0
#: Of an answer's words, so many are shown.
SHOWN = 200


class RunPod:
    """One pod, as its own software may change it."""

    def __init__(self, *, pod_id: str, api_key: SecretStr, endpoint: str = ENDPOINT) -> None:
        self._pod_id, self._api_key, self._endpoint = pod_id, api_key, endpoint

    def stop(self) -> None:
        """Stop the pod: its GPU is given back and its container ends, its volume stays.

        Raises:
            PodNotStopped: RunPod did not agree, or could not be asked.
        """
        try:
            answer = httpx2.post(
                f"{self._endpoint}/pods/{self._pod_id}/action",
                json={"action": "stop"},
                headers={"authorization": f"Bearer {self._api_key.get_secret_value()}"},
                timeout=TIMEOUT_S,
                follow_redirects=False,
            )
        except httpx2.HTTPError as error:
            raise PodNotStopped(
                f"RunPod could not be asked to stop this pod ({type(error).__name__}); stop it in RunPod's console"
            ) from None
        if answer.is_success:
            return
        way_out = "stop it in RunPod's console"
        if answer.status_code in (401, 403):
            way_out += ", and give it a RUNPOD_API_KEY that may write pods"
        raise PodNotStopped(f"RunPod did not stop this pod: {answer.status_code} {_words(answer)}; {way_out}")


def _words(answer: httpx2.Response) -> str:
    """What RunPod says of an error. Source: RFC 9457, "detail" and "title"."""
    try:
        said = answer.json()
        words = str(said.get("detail") or said.get("title") or "") if isinstance(said, dict) else ""
    except ValueError:
        words = ""
    return redact(words or answer.reason_phrase)[:SHOWN]
