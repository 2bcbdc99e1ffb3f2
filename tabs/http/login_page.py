"""The page that asks for name and password: whole in itself, as nothing else can be fetched without them."""

import html
from string import Template

from tabs.common import WEB, t


def login_page(*, language: str, query: str, wait_s: int, tried: bool) -> str:
    """Return the page.

    Args:
        language: The browser's ``Accept-Language``.
        query: What the page behind it was asked for.
        wait_s: Seconds until this address may try again.
        tried: Whether a password was refused just now.
    """
    code = language.split(",")[0].split(";")[0].split("-")[0].strip().lower()
    code = code if code in t.translations else "en"
    say = {key: html.escape(text) for key, text in t.translations[code].items()}
    trouble = say["login.wait"].format(wait_s) if wait_s else say["login.wrong"] if tried else ""
    return Template((WEB / "login.html").read_text(encoding="utf-8")).substitute(
        language=code,
        brand=(WEB / "brand.html").read_text(encoding="utf-8"),
        trouble=f'<p class="trouble" role="alert">{trouble}</p>' if trouble else "",
        query=html.escape(f"?{query}" if query else ""),
        name=say["login.name"],
        password=say["login.password"],
        enter=say["login.enter"],
    )
