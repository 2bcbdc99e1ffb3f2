"""The Hugging Face hub: which files a repository holds, their bytes, and who may have them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from httpx2 import HTTPError, Response, Timeout
from huggingface_hub import HfApi, get_session, hf_raise_for_status
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.file_download import hf_hub_url

from isengard import __version__
from isengard.errors import HubRefused, HubUnreachable
from isengard.store.manifest import RemoteFile, Snapshot

#: Seconds: an answer that takes longer is taken for none.
CONNECT_S, ANSWER_S, SILENCE_S = 5.0, 10.0, 15.0
TOKENS_PAGE = "/settings/tokens"


class Hub:
    """Asks one hub. Every method raises `HubUnreachable` and `HubRefused`, in words for a user.

    Args:
        endpoint: Its address.
        token: Gives the token to ask with, or None.
        offline: Ask nothing; say so.
    """

    def __init__(self, *, endpoint: str, token: Callable[[], str | None], offline: bool = False) -> None:
        self.endpoint = endpoint.rstrip("/")
        self.offline = offline
        self._token = token

    def snapshot(self, repository: str) -> Snapshot:
        """What the newest commit holds."""
        with self._spoken(repository):
            info = HfApi(endpoint=self.endpoint, token=self._token() or False).model_info(
                repository, files_metadata=True, timeout=ANSWER_S
            )
        files = tuple(
            RemoteFile(
                path=each.rfilename,
                size=each.size or 0,
                sha256=each.lfs.sha256 if each.lfs else None,
                blob_id=each.blob_id if not each.lfs else None,
            )
            for each in info.siblings or ()
        )
        return Snapshot(repository=repository, commit=info.sha or "main", files=files)

    @contextmanager
    def stream(self, snapshot: Snapshot, file: RemoteFile, *, start: int = 0) -> Iterator[Iterator[bytes]]:
        """The bytes of a file from ``start`` on."""
        url = hf_hub_url(snapshot.repository, file.path, revision=snapshot.commit, endpoint=self.endpoint)
        headers = self._headers(self._token()) | {"accept-encoding": "identity"}
        if start:
            headers["range"] = f"bytes={start}-"
        timeout = Timeout(SILENCE_S, connect=CONNECT_S)
        with (
            self._spoken(snapshot.repository),
            get_session().stream("GET", url, headers=headers, timeout=timeout) as response,
        ):
            if response.is_error:
                response.read()
            hf_raise_for_status(response)
            if start and response.status_code != 206:  # the whole file comes: pass over what is here
                yield _after(response.iter_raw(), start)
            else:
                yield response.iter_raw()

    def user(self, token: str) -> str:
        """Whose token it is."""
        return str(self._get("/api/whoami-v2", token).json().get("name", ""))

    def check_access(self, repository: str, token: str) -> None:
        """Return when the files of a repository may be had with a token."""
        self._get(f"/api/models/{repository}/auth-check", token, repository)

    def _get(self, path: str, token: str, repository: str = "") -> Response:
        with self._spoken(repository):
            timeout = Timeout(ANSWER_S, connect=CONNECT_S)
            response = get_session().get(self.endpoint + path, headers=self._headers(token), timeout=timeout)
            hf_raise_for_status(response)
        return response

    def _headers(self, token: str | None) -> dict[str, str]:
        """Only the hub itself gets the token: it is not repeated to the server a file is fetched from."""
        named = {"user-agent": f"isengard/{__version__}"}
        return named | ({"authorization": f"Bearer {token}"} if token else {})

    @contextmanager
    def _spoken(self, repository: str) -> Iterator[None]:
        """Say what went wrong in words for a user. Our own errors and those of the disk pass."""
        if self.offline:
            raise HubUnreachable(
                "offline (HF_HUB_OFFLINE is set): nothing is fetched from the Hugging Face hub, and what is on"
                " this machine works; unset it to download"
            )
        try:
            yield
        except HfHubHTTPError as error:
            raise self._refusal(error, repository) from None
        except (HTTPError, OfflineModeIsEnabled) as error:
            raise HubUnreachable(
                f"{self.endpoint} cannot be reached ({type(error).__name__}: {error}); what is on this machine"
                " works without it"
            ) from None

    def _refusal(self, error: HfHubHTTPError, repository: str) -> HubRefused | HubUnreachable:
        status, page = error.response.status_code, f"{self.endpoint}/{repository}"
        said = f" (it said: {error.server_message})" if error.server_message else ""
        if status == 401:
            sent = "authorization" in error.response.request.headers
            what = f"the token for {repository}" if repository else "this token"
            return HubRefused(
                (f"the Hugging Face hub does not know {what}" if sent else f"{repository} wants a token")
                + f"{said}: make one with read access at {self.endpoint}{TOKENS_PAGE}, and give it to"
                ' `python -m isengard models token`, or on the Training tab under "Base models"'
            )
        if isinstance(error, GatedRepoError) or status == 403:
            return HubRefused(
                f"this token is known, but may not have {repository or 'this'} yet{said}: accept the licence at"
                f" {page} with the same account (a fine-grained token also needs access to gated repositories:"
                f" {self.endpoint}{TOKENS_PAGE})"
            )
        if status == 404:
            return HubRefused(f"{page} does not exist, or has no such file{said}")
        return HubUnreachable(f"{self.endpoint} answers with error {status}{said}; try again later")


def _after(chunks: Iterator[bytes], start: int) -> Iterator[bytes]:
    """Leave out the first ``start`` bytes."""
    for chunk in chunks:
        if start < len(chunk):
            yield chunk[start:]
        start = max(0, start - len(chunk))
