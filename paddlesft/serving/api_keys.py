"""Keys of the API: who may ask."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Sequence

from paddlesft.errors import ConfigError
from paddlesft.serving.errors import ApiError

ENVIRONMENT = "PADDLESFT_API_KEY"


def read_keys(given: Iterable[str], environment: str | None) -> tuple[str, ...]:
    """Return the keys of a server, each once.

    Args:
        given: those of the command line or file.
        environment: what ``PADDLESFT_API_KEY`` holds: keys with commas between them; or None.

    Raises:
        ConfigError: a key is empty, or has characters that no HTTP header holds. The key itself is not shown.
    """
    keys: list[str] = []
    for place, values in (("api_key", list(given)), (ENVIRONMENT, environment.split(",") if environment else [])):
        for number, key in enumerate(values, 1):
            if not key.strip() or not key.strip().isascii() or not key.strip().isprintable() or " " in key.strip():
                raise ConfigError(
                    f"{place}: key {number} of {len(values)} is empty or holds spaces or characters beyond ASCII; "
                    "allowed: letters, digits and signs, best at random: openssl rand -hex 24"
                )
            keys.append(key.strip())
    return tuple(dict.fromkeys(keys))


def check_key(keys: Sequence[str], authorization: str | None) -> None:
    """Refuse a request without one of the keys.

    Every key is compared in full, so that the time of an answer says nothing about them.

    Args:
        keys: those accepted; none: everybody may ask.
        authorization: the header ``Authorization``, or None.

    Raises:
        ApiError: 401.
    """
    if not keys:
        return
    scheme, _, found = (authorization or "").partition(" ")
    digest = hashlib.sha256(found.strip().encode("utf-8", "surrogatepass")).digest()
    known = False
    for key in keys:
        known |= hmac.compare_digest(hashlib.sha256(key.encode()).digest(), digest)
    if known and scheme.lower() == "bearer":
        return
    what = "No API key was sent" if not found else "The API key is not known here"
    raise ApiError(
        401,
        f"{what}. Send the header 'Authorization: Bearer KEY' with a key of this server.",
        type="authentication_error",
        code="invalid_api_key",
        headers={"WWW-Authenticate": "Bearer"},
    )
