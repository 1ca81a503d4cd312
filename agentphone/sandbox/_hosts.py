"""The check of the `Host` header against DNS rebinding.

A web page can give its own domain name the address of this machine, and would then be of the same origin as the
sandbox. So a request must name the sandbox by an address, or by a name that no public DNS server can answer for.
"""

import ipaddress
import re
from collections.abc import Collection

PRIVATE_SUFFIXES = (".localhost", ".local", ".internal", ".test")


def is_local_host(header: str, allowed: Collection[str] = ()) -> bool:
    """Return whether the value of a `Host` header is safe.

    Args:
        header: The value: a name or address, and perhaps a port.
        allowed: Further names that are safe, in lower case.
    """
    match = re.fullmatch(r"(?:\[(?P<ipv6>[0-9A-Fa-f:.%]+)\]|(?P<name>[^:\[\]/@\s]+))(?::[0-9]*)?", header)
    if match is None:
        return False
    name = (match["ipv6"] or match["name"]).lower().rstrip(".")
    if name in allowed or ("." not in name and match["name"]) or name.endswith(PRIVATE_SUFFIXES):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
