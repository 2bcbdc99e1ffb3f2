"""What browsers are told to refuse."""

from collections.abc import Mapping

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

#: Pages that show this one in a frame: RunPod's console, and Hugging Face's of a Space. Not all of their domains, as other
#: people's pods and Spaces are there, too.
FRAMES = ("'self'", "https://huggingface.co", "https://console.runpod.io", "https://www.runpod.io")
#: With a share link Gradio's page takes its scripts and fonts from here.
GRADIO_CDN = "https://gradio.s3-us-west-2.amazonaws.com"
#: Gradio's page holds scripts in itself and compiles the components' own from text, hence 'unsafe-inline' and -eval.
POLICY: Mapping[str, str] = {
    "default-src": "'self'",
    "script-src": "'self' 'unsafe-inline' 'unsafe-eval'",
    "style-src": "'self' 'unsafe-inline'",
    "img-src": "'self' data: blob:",
    "font-src": "'self' data:",
    "connect-src": "'self'",
    "media-src": "'self' data: blob:",
    "worker-src": "'self' blob:",
    "frame-src": "'none'",
    "object-src": "'none'",
    "base-uri": "'self'",
    "form-action": "'self'",
    "frame-ancestors": " ".join(FRAMES),
}
FROM_CDN = ("script-src", "style-src", "img-src", "font-src", "connect-src")
UNUSED = ("accelerometer", "camera", "display-capture", "geolocation", "gyroscope", "magnetometer", "microphone", "midi",
          "payment", "serial", "usb", "xr-spatial-tracking")  # fmt: skip


class Guarding:
    """Puts the headers on every answer; what has one of its own keeps it."""

    def __init__(self, app: ASGIApp, *, shared: bool) -> None:
        """``shared``: there is a share link, too."""
        self._app = app
        self._headers = {
            "content-security-policy": policy(shared=shared),
            "x-content-type-options": "nosniff",
            "referrer-policy": "same-origin",
            "permissions-policy": ", ".join(f"{name}=()" for name in UNUSED),
            "cross-origin-resource-policy": "same-origin",
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, guarded if scope["type"] == "http" else send)


def policy(*, shared: bool) -> str:
    """The content security policy."""
    more = dict.fromkeys(FROM_CDN, f" {GRADIO_CDN}") if shared else {}
    return "; ".join(f"{name} {sources}{more.get(name, '')}" for name, sources in POLICY.items())
