r"""What an address on the web may look like, how it is shown, and where it must not lead.

Addresses come from users, from catalogs and from hosts that redirect. Python's and urllib3's idea
of a malformed one differ (``http://a\@b/``), and a file must lie in the cache under the host that
was asked; so what either could misread is refused here, once.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from typing import NamedTuple
from urllib.parse import SplitResult, urljoin, urlsplit

from trunkline.errors import ConfigError

DEFAULT_PORTS = {"https": 443, "http": 80}

_LONGEST = 8192  # signed addresses have some 2000 characters
_AUTHORITY = re.compile(r"(\[(?P<number>[^\[\]]+)\]|[^\[\]:]+)(:(?P<port>.*))?")
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")


class Origin(NamedTuple):
    """Who is asked: what may see a password or a token that was meant for it."""

    scheme: str
    host: str
    port: int


def split(url: str) -> SplitResult:
    """Take an ``https://`` or ``http://`` address apart.

    Raises:
        ConfigError: It is none, or one that could be misread.
    """
    if fault := why_not(url):
        raise ConfigError(
            f"{shown(url)[:200]!r} is not an address to get weights from ({fault}); it begins with "
            "https://, http:// or hf://. A file on this machine is given by its path."
        )
    return urlsplit(url)


def why_not(url: str) -> str:
    """Say in a clause why an address is none; "" for a good one."""
    if len(url) > _LONGEST:
        return f"it has {len(url)} characters, and {_LONGEST} are the most"
    if url != url.strip() or any(ord(one) < 0x20 or ord(one) == 0x7F for one in url):
        return "it has spaces around it or control characters in it"
    try:
        url.encode()
        return _fault(urlsplit(url))
    except ValueError as error:  # what is said of brackets, of names and of letters that are none
        return str(error)


def origin(url: str) -> Origin:
    """Return who is asked with an address that ``split`` takes."""
    parts = urlsplit(url)
    return Origin(parts.scheme, parts.hostname or "", parts.port or DEFAULT_PORTS[parts.scheme])


def landing(url: str, location: str) -> str:
    """Return where a redirect leads.

    Args:
        url: The address that answered with it.
        location: Its header, as http.client gives it.

    Raises:
        ValueError: That is no address, or one that must not be followed; the text is a clause.
    """
    try:
        target = urljoin(url, location.encode("latin-1").decode("utf-8"))
    except ValueError as error:
        raise ValueError(f"redirects to what is no address ({error})") from error
    if origin(url).scheme == "https" and target.partition(":")[0].lower() != "https":
        raise ValueError(f"redirects from https to {shown(target)[:200]}")
    if fault := why_not(target):
        raise ValueError(f"redirects to what is no address ({fault}): {shown(target)[:200]!r}")
    host = origin(target).host
    if is_own(host) and not is_own(origin(url).host):
        raise ValueError(f"redirects to {host}, an address of this machine or its link")
    return target


def is_own(host: str) -> bool:
    """Tell an address of this machine or its link, where no host elsewhere has files to give.

    Private networks are not meant, where mirrors of a company are. Names are not looked up.
    """
    try:
        number = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        try:  # 127.1 and 0x7f000001 are spellings that only the system knows
            number = ipaddress.IPv4Address(socket.inet_aton(host))
        except OSError:
            return host.rstrip(".").endswith("localhost")
    number = getattr(number, "ipv4_mapped", None) or number
    return number.is_loopback or number.is_link_local or number.is_unspecified


def shown(url: str) -> str:
    """Return a URL without what must not be logged: passwords and signed queries."""
    return re.sub(r"^([^/?#]*//)[^/?#]*@", r"\1", re.split(r"[?#]", url, maxsplit=1)[0])


def _fault(parts: SplitResult) -> str:
    if parts.scheme not in DEFAULT_PORTS:
        return "another scheme, or none"
    if not parts.hostname:
        return "no host is named"
    if re.search(r"[\s\\]", parts.netloc):
        return "its host has spaces or backslashes in it"
    found = _AUTHORITY.fullmatch(parts.netloc.rpartition("@")[2])
    if found is None:
        return "its host has brackets around something else"
    port = found["port"]
    if port and not (re.fullmatch(r"[0-9]{1,5}", port) and 0 < int(port) < 1 << 16):
        return "its port is none of 1 to 65535"
    if found["number"]:
        ipaddress.IPv6Address(found["number"])
        return ""
    name = parts.hostname
    name = name if name.isascii() else name.encode("idna").decode("ascii")
    labels = name.removesuffix(".").split(".")
    good = len(name) <= 253 and all(_LABEL.fullmatch(label) for label in labels)
    return "" if good else "its host is no name and no number"
