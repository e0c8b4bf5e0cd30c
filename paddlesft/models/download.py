"""Files of a model hub -> a directory that is complete or absent; interrupted downloads go on where they stopped."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock

from paddlesft.errors import ModelDirectoryError

logger = logging.getLogger("paddlesft")

ATTEMPTS = 3  # for one file, each going on where the last one broke off
TIMEOUT = (10, 60)  # seconds to connect, seconds without a byte
BLOCK = 1 << 16


class HubError(ModelDirectoryError):
    """A model cannot be had from a hub."""


@dataclass(frozen=True)
class RemoteFile:
    """One file of a model on a hub.

    Attributes:
        path: its place in the model directory.
        url: where its bytes are.
        size: in bytes, None when the hub does not say.
        sha256: of its content, None when the hub does not say.
    """

    path: str
    url: str
    size: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Hub:
    """How errors of one hub are explained.

    Attributes:
        name: in messages.
        token_variable: environment variable that holds an access token.
        endpoint_variable: environment variable that holds the address.
    """

    name: str
    token_variable: str | None
    endpoint_variable: str


def get(hub: Hub, model: str, url: str, headers: Mapping[str, str], **options: Any) -> Any:
    """Send a GET (or, with ``method="HEAD"``, a HEAD) request.

    Returns:
        The ``requests.Response``; of status 404 too, which callers judge.

    Raises:
        HubError: the hub cannot be reached, refuses, or fails; the text says what to set.
    """
    import requests

    try:
        method = options.pop("method", "GET")
        response = requests.request(
            method, url, headers=dict(headers), timeout=TIMEOUT, allow_redirects=True, **options
        )
    except requests.RequestException as error:
        raise HubError(
            f"{hub.name} cannot be reached at {_host(url)} ({type(error).__name__}). Check the network or "
            f"{hub.endpoint_variable}, or download {model} elsewhere and give its directory."
        ) from error
    if response.status_code in (401, 403):
        how = f"Set {hub.token_variable} to a token that may read it." if hub.token_variable else "It is not public."
        raise HubError(f"{hub.name} refuses access to {model} (status {response.status_code}). {how}")
    if response.status_code >= 400 and response.status_code not in (404, 416):
        raise HubError(f"{hub.name} answers with status {response.status_code} for {url}. Try again later.")
    return response


def download_snapshot(
    hub: Hub, model: str, files: Sequence[RemoteFile], target: Path, headers: Mapping[str, str]
) -> Path:
    """Download the files of a model.

    Args:
        hub: where they are, for messages.
        model: the model's name, for messages.
        files: what to download.
        target: the directory to create; it appears when every file is complete and checked.
        headers: sent with every request (authorisation).

    Returns:
        ``target``.

    Raises:
        HubError: a file cannot be had, or is not what the hub announced. What was downloaded is kept for the next try.
    """
    partial = target.parent / f".{target.name}.partial"
    partial.mkdir(parents=True, exist_ok=True)
    with FileLock(str(target.parent / f".{target.name}.lock")):
        if target.is_dir():
            return target
        for number, file in enumerate(files, 1):
            logger.info("%s: file %d of %d, %s", model, number, len(files), file.path)
            _download(hub, model, file, partial, headers)
        os.rename(partial, target)
    return target


def _download(hub: Hub, model: str, file: RemoteFile, directory: Path, headers: Mapping[str, str]) -> None:
    place = PurePosixPath(file.path)
    if place.is_absolute() or ".." in place.parts:
        raise HubError(
            f"{hub.name} lists a file outside the model directory for {model}: {file.path!r}. Not downloaded."
        )
    path = directory / place
    if path.is_file():
        return  # complete: it has its name only after the check below
    path.parent.mkdir(parents=True, exist_ok=True)
    part, tag = path.with_name(path.name + ".part"), path.with_name(path.name + ".etag")
    for attempt in range(1, ATTEMPTS + 1):
        problem = _fetch(hub, model, file, part, tag, headers)
        if problem is None:
            break
        if attempt == ATTEMPTS:
            raise HubError(
                f"{hub.name}: {file.path} of {model} {problem}, {ATTEMPTS} times. "
                "What has come is kept; the same command goes on from there."
            )
        logger.warning("%s of %s %s; trying again", file.path, model, problem)
    tag.unlink(missing_ok=True)
    os.replace(part, path)


def _fetch(hub: Hub, model: str, file: RemoteFile, part: Path, tag: Path, headers: Mapping[str, str]) -> str | None:
    """Fetch what is missing of a file; return what went wrong, None when it is complete."""
    import requests

    have = part.stat().st_size if part.exists() else 0
    asked = {**headers, "Accept-Encoding": "identity"}
    if have:
        asked["Range"] = f"bytes={have}-"
        if tag.exists():
            asked["If-Range"] = tag.read_text(encoding="utf-8")  # another version since: begin anew
    response = get(hub, model, file.url, asked, stream=True)
    with response:
        if response.status_code == 404:
            raise HubError(f"{hub.name} lists {file.path} of {model} but does not have it (status 404).")
        if response.status_code == 416 and file.size != have:
            part.unlink()
            return "does not fit what was downloaded before"
        if response.status_code == 200:
            have = 0
        expected = file.size
        if response.status_code != 416:
            if response.headers.get("ETag"):
                tag.write_text(response.headers["ETag"], encoding="utf-8")
            length = response.headers.get("Content-Length")
            expected = file.size if file.size is not None else (have + int(length) if length else None)
            try:
                with part.open("ab" if have else "wb") as out:
                    for block in response.iter_content(BLOCK):
                        out.write(block)
            except (requests.RequestException, OSError) as error:
                if isinstance(error, OSError) and not isinstance(error, requests.RequestException):
                    raise
                return f"broke off after {part.stat().st_size} bytes"
    size = part.stat().st_size
    if expected is not None and size < expected:
        return f"broke off after {size} of {expected} bytes"
    if (expected is not None and size > expected) or (file.sha256 and _sha256(part) != file.sha256):
        part.unlink()
        return "is damaged (size or checksum)"
    return None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _host(url: str) -> str:
    return "/".join(url.split("/")[:3])
