"""Who may ask what of the server, and what browsers may do with what it answers."""

from __future__ import annotations

import asyncio
import base64
import binascii
import ipaddress
import re
import secrets
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

from chat.refusals import Refusal, refuse

# What the page and Gradio's clients use; of the rest of Gradio nothing is served.
READ = re.compile(
    r"/|/page/.+|/info|/pictures/[0-9a-f]{64}|/examples/\d+|/favicon\.ico|/config/?"
    r"|/gradio_api/(info/?|startup-events|queue/data|heartbeat/[\w-]+|call/\w+/\w+)"
)
WRITE = re.compile(r"/pictures|/login/?|/gradio_api/(upload|queue/join|call/chat/?|cancel|reset/?)")
STARTUP = "/gradio_api/startup-events"  # which Gradio asks itself when it starts
WRONG_PASSWORD_SECONDS = 1
SPACES = "https://huggingface.co"

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "font-src 'self'; manifest-src 'self'; form-action 'none'; base-uri 'none'; object-src 'none'; frame-ancestors "
)
HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


@dataclass(frozen=True)
class Access:
    """Who is let in.

    Attributes:
        hosts: Names under which the server may be asked, in lower case, without ports; of `.name` all that end so.
        any_address: Whether any number address may stand for a name: a site that turns its own name to this machine
            (DNS rebinding) asks under that name, never under a number.
        behind_proxy: Whether to believe the X-Forwarded headers, which anybody can send who reaches the server itself.
        in_a_space: Whether Hugging Face's pages may frame the page.
        password: The user and the password to ask for; None asks for none.
    """

    hosts: frozenset[str] = frozenset({"localhost", "127.0.0.1", "::1"})
    any_address: bool = False
    behind_proxy: bool = False
    in_a_space: bool = False
    password: tuple[str, str] | None = None
    session: str = field(default_factory=secrets.token_urlsafe)  # who has given the password gets it as a cookie


class Gate:
    """ASGI middleware around all others: lets pass what Access allows, and sends HEADERS with every response."""

    def __init__(self, app: Any, access: Access) -> None:
        self._app = app
        self._access = access
        frames = f"'self' {SPACES}" if access.in_a_space else "'none'"
        self._headers = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
        self._headers.append((b"content-security-policy", (POLICY + frames).encode()))

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            scope = believed(scope, self._access.behind_proxy)
            try:
                self._check(scope)
                await self._check_password(scope)
            except Refusal as refusal:
                await refuse(self._with_headers(send), refusal)
            else:
                await self._app(scope, receive, self._with_headers(send))

    def _with_headers(self, send: Any) -> Any:
        ours = {name for name, _ in self._headers}

        async def send_with_headers(message: dict) -> None:
            if message["type"] == "http.response.start":
                kept = [
                    (name, value)
                    for name, value in message.get("headers", [])
                    if name.lower() not in ours and not name.lower().startswith(b"access-control-")
                ]
                message = {**message, "headers": [*kept, *self._headers]}
            await send(message)

        return send_with_headers

    def _check(self, scope: dict) -> None:
        """Raises Refusal where host, sender or path are none to answer."""
        headers = _text_headers(scope)
        host = headers.get("host", "")
        if not self._is_ours(host):
            raise Refusal(
                421,
                f"The server does not answer to the name {host[:100]!r}. To let it, start it with --allow-host NAME.",
            )
        reads = scope["method"] in ("GET", "HEAD")
        if not reads and (origin := headers.get("origin")) is not None and not _same_host(origin, host):
            raise Refusal(403, "This request was sent by a page of another site.")
        visits = scope["path"] == "/" and reads and headers.get("sec-fetch-mode") == "navigate"
        if headers.get("sec-fetch-site") in ("cross-site", "same-site") and not visits:
            raise Refusal(403, "This request was sent by a page of another site.")
        served = {"GET": READ, "HEAD": READ, "POST": WRITE}.get(scope["method"])
        if served is None or not served.fullmatch(scope["path"]):
            raise Refusal(404, "There is nothing at this address.")

    def _is_ours(self, host: str) -> bool:
        name = _name_of(host)
        if name in self._access.hosts or any(each[:1] == "." and name.endswith(each) for each in self._access.hosts):
            return True
        return self._access.any_address and _is_address(name)

    async def _check_password(self, scope: dict) -> None:
        if self._access.password is None or scope["path"] in (STARTUP, "/login", "/login/"):
            return
        headers = _text_headers(scope)
        if is_equal(_cookie(headers.get("cookie", "")), self._access.session):
            return
        given = _basic(headers.get("authorization", ""))
        if given is not None and matches(given, self._access.password):
            return
        if given is not None:
            await asyncio.sleep(WRONG_PASSWORD_SECONDS)
        raise Refusal(401, "A user and a password are wanted.", {"www-authenticate": 'Basic realm="chat"'})


async def check_login(body: bytes, access: Access) -> dict[str, str]:
    """What gradio_client's `Client(url, auth=...)` asks for: a form of user and password.

    Returns:
        The headers of the answer, with the cookie.

    Raises:
        Refusal: They are others.
    """
    form = parse_qs(body.decode("utf-8", "replace"), max_num_fields=10)
    given = tuple(form.get(name, [""])[0] for name in ("username", "password"))
    if access.password is None or not matches(given, access.password):
        await asyncio.sleep(WRONG_PASSWORD_SECONDS)
        raise Refusal(401, "A user and a password are wanted.")
    return {"set-cookie": f"chat={access.session}; HttpOnly; SameSite=Strict; Path=/"}


def believed(scope: dict, behind_proxy: bool) -> dict:
    """A request as a trusted proxy tells of it; without one, no word of what is said to be forwarded."""
    headers = _text_headers(scope)
    kept = [(name, value) for name, value in scope["headers"] if not name.startswith((b"x-forwarded-", b"forwarded"))]
    if not behind_proxy:
        return {**scope, "headers": kept}
    scope = {**scope, "headers": list(scope["headers"])}
    if addresses := headers.get("x-forwarded-for"):
        scope["client"] = (_client_of(addresses), 0)
    if host := headers.get("x-forwarded-host"):
        scope["headers"] = [(name, value) for name, value in scope["headers"] if name != b"host"]
        scope["headers"].append((b"host", host.split(",")[0].strip().encode("latin-1")))
    return scope


def _client_of(addresses: str) -> str:
    """The last public one of the addresses that proxies noted, each that it was asked from; else the first."""
    noted = [address.strip() for address in addresses.split(",")]
    public = [address for address in noted if _is_address(address) and ipaddress.ip_address(address).is_global]
    return public[-1] if public else noted[0]


def _text_headers(scope: dict) -> dict[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}


def _name_of(host: str) -> str:
    """A Host header's name or address, without the port."""
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _same_host(origin: str, host: str) -> bool:
    """Whether an Origin header names the host that was asked, whatever the scheme: a proxy may have added the s."""

    def plain(netloc: str) -> str:
        return re.sub(r":(80|443)$", "", netloc.lower())

    try:
        return plain(urlsplit(origin).netloc) == plain(host)
    except ValueError:
        return False


def _basic(authorization: str) -> tuple[str, str] | None:
    """User and password of an Authorization header."""
    kind, _, encoded = authorization.partition(" ")
    if kind.lower() != "basic":
        return None
    try:
        user, _, password = base64.b64decode(encoded).decode("utf-8", "replace").partition(":")
    except binascii.Error:
        return None
    return user, password


def _cookie(header: str) -> str:
    try:
        morsel = SimpleCookie(header).get("chat")
    except CookieError:
        return ""
    return morsel.value if morsel else ""


def is_equal(given: str, wanted: str) -> bool:
    """Compares in a time that does not tell how much is right."""
    return secrets.compare_digest(given.encode(), wanted.encode())


def matches(given: tuple[str, ...], wanted: tuple[str, str]) -> bool:
    return all([is_equal(*pair) for pair in zip(given, wanted, strict=True)])
