"""Requests to a server whose key must go nowhere else."""

import http.client
import ipaddress
import urllib.request
from urllib.parse import urlsplit


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect is an answer like any other: the key must not go where it leads."""

    def redirect_request(self, *_: object) -> None:
        return None


def open_request(request: urllib.request.Request, seconds: float) -> http.client.HTTPResponse:
    """The answer. A redirect is followed nowhere, and what goes to this machine or to a private address
    goes through no proxy. seconds:
    timeout. Raises HTTPError for a status that is not 2xx, OSError, HTTPException."""
    handlers: list[type[urllib.request.BaseHandler] | urllib.request.BaseHandler] = [_NoRedirects]
    if is_near(urlsplit(request.full_url).hostname or ""):
        handlers.append(urllib.request.ProxyHandler({}))
    response: http.client.HTTPResponse = urllib.request.build_opener(*handlers).open(request, timeout=seconds)
    return response


def is_near(host: str) -> bool:
    """Whether a name or address in a URL is this machine itself, or a private address."""
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def is_loopback(address: str) -> bool:
    """Whether a URL leads to this machine itself."""
    host = urlsplit(address).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
