"""The pages of a blind comparison over HTTP, for people on this machine who have its link.

Not here: what the pages say (evaluate.blind_page), the listening process (serve.run). Called by cli.blind.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable
from urllib.parse import parse_qs, quote

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from tunesmith.errors import InputError
from tunesmith.evaluate.blind import CHOICES, Comparison, check_rater
from tunesmith.evaluate.blind_page import rate_page, refusal_page, result_page, start_page
from tunesmith.serve.access import is_loopback

MAX_BODY_BYTES = 64 * 1024


def create_app(comparison: Comparison, *, end: Callable[[], None]) -> ASGIApp:
    """The application; every address begins with the comparison's token. `end` ends the comparison."""
    pages = Pages(comparison, end)
    routes = [
        Route("/{token}/", pages.start, methods=["GET", "POST"]),
        Route("/{token}/rate/{rater}", pages.rate, methods=["GET", "POST"]),
        Route("/{token}/end", pages.end, methods=["POST"]),
        Route("/{token}/result", pages.result),
    ]
    return Guard(Starlette(routes=routes), token=str(comparison.facts["token"]))


class Pages:
    """One method an address. What is asked of the files takes milliseconds, so the loop waits for it."""

    def __init__(self, comparison: Comparison, end: Callable[[], None]) -> None:
        self.comparison = comparison
        self.path = f"/{comparison.facts['token']}"
        self._end = end

    async def start(self, request: Request) -> Response:
        if request.method == "POST":
            try:
                name = check_rater((await _form(request)).get("name", "").strip())
            except InputError as error:
                return _page(refusal_page(str(error), nonce=(nonce := _nonce())), nonce, status=400)
            return self._go(f"/rate/{quote(name)}")
        if self.comparison.votes().ended:
            return self._go("/result")
        nonce = _nonce()
        return _page(start_page(self.comparison, path=self.path, nonce=nonce), nonce)

    async def rate(self, request: Request) -> Response:
        nonce = _nonce()
        try:
            rater = check_rater(request.path_params["rater"])
        except InputError as error:
            return _page(refusal_page(str(error), nonce=nonce), nonce, status=400)
        if self.comparison.votes().ended:
            return self._go("/result")
        if request.method == "GET":
            return _page(rate_page(self.comparison, rater, path=self.path, nonce=nonce), nonce)
        form = await _form(request)
        row, choice = form.get("row", ""), form.get("choice")
        if "undo" in form:
            self.comparison.undo(rater)
        elif choice in CHOICES and row.isdecimal():
            self.comparison.vote(rater, int(row), choice=choice, comment=form.get("comment", ""))
        return self._go(f"/rate/{quote(rater)}")

    async def end(self, request: Request) -> Response:
        self._end()
        return self._go("/result")

    async def result(self, request: Request) -> Response:
        if not self.comparison.votes().ended:
            return self._go("/")
        nonce = _nonce()
        return _page(result_page(self.comparison, nonce=nonce), nonce)

    def _go(self, address: str) -> Response:
        """See Other: a page loaded again sends nothing again."""
        return RedirectResponse(self.path + address, status_code=303)


class Guard:
    """Answers only who has the link, on this machine: a page of another site has neither the token nor our Origin, and
    one whose name was turned to this address (DNS rebinding) has another Host."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self.app = app
        self.token = token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (refusal := self._refusal(scope)):
            nonce = _nonce()
            await _page(refusal_page(refusal, nonce=nonce), nonce, status=403)(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _refusal(self, scope: Scope) -> str | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not is_loopback(_hostname(host)):
            return "Only this machine is answered, under its own name."
        if scope["method"] not in ("GET", "HEAD") and headers.get("origin") not in (None, f"http://{host}"):
            return "This was sent by another site."
        given = scope["path"].split("/")[1].encode()
        return None if hmac.compare_digest(given, self.token) else "This is not the whole link."


def _hostname(host: str) -> str | None:
    from urllib.parse import urlsplit

    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _nonce() -> str:
    return secrets.token_urlsafe(12)


def _page(text: str, nonce: str, *, status: int = 200) -> Response:
    """With a policy under which nothing is loaded and nothing runs but the page's own style and keys."""
    policy = (
        f"default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; form-action 'self'; "
        "base-uri 'none'; frame-ancestors 'none'"
    )
    headers = {
        "content-security-policy": policy,
        "cache-control": "no-store",
        "referrer-policy": "same-origin",  # with no-referrer, forms would be sent with no Origin to check
        "x-content-type-options": "nosniff",
    }
    return HTMLResponse(text, status_code=status, headers=headers)


async def _form(request: Request) -> dict[str, str]:
    """The fields of a form; nothing when it is too large or no text."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY_BYTES:
            return {}
    try:
        fields = parse_qs(body.decode(), keep_blank_values=True, max_num_fields=20)
    except ValueError:
        return {}
    return {name: values[-1] for name, values in fields.items()}
