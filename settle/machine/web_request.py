"""Requests to a server whose key must go nowhere else."""

import contextlib
import ipaddress
import ssl
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx

WEB_ERRORS = (httpx.HTTPError, httpx.InvalidURL)  # that a request may raise


@contextlib.contextmanager
def open_response(
    method: str, url: str, seconds: float, headers: Mapping[str, str], body: bytes | None = None
) -> Iterator[httpx.Response]:
    """Yield the response, whose body is yet to be read; whatever its status, it is an answer.

    No redirect is followed, for the key must not go where it leads, and what goes to this machine or to a private
    address goes through no proxy. seconds: of silence after which it fails. Raises WEB_ERRORS, here and while the body
    is read.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    proxy = None if is_near(host) or proxy_bypass(host) else getproxies().get(parts.scheme)
    if proxy and "://" not in proxy:
        proxy = f"http://{proxy}"
    secure = ssl.create_default_context() if parts.scheme == "https" else False
    own = {"Accept-Encoding": "identity", "Connection": "close"}  # the size of an answer is what is sent
    sent = {name.encode(): value.encode() for name, value in {**own, **headers}.items()}
    with (
        httpx.Client(verify=secure, proxy=proxy, trust_env=False, timeout=seconds) as client,
        client.stream(method, url, headers=sent, content=body) as response,
    ):
        yield response


def reason(error: Exception) -> str:
    """Return why a request failed, in the system's words where it has some."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return str(error) or type(error).__name__


def is_near(host: str) -> bool:
    """Return whether a name or address in a URL is this machine itself, or a private address."""
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def is_loopback(address: str) -> bool:
    """Return whether a URL leads to this machine itself."""
    host = urlsplit(address).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
