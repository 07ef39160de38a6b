"""Fetch weights from the local cache, else download them, else fail within seconds.

By themselves, the libraries retry an unreachable host for most of a minute (huggingface_hub 2.4: 23 s for each of two
files) or wait for a connection without limit (torch.hub). So the cache is searched first, without a request, and the
server is contacted once, with a deadline, before a download begins.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlparse

from ..errors import WeightsUnavailableError, first_line

REACH_SECONDS = 10.0


def hub_file(repository: str, candidates: Sequence[str], *, what: str) -> Path:
    """Find a file of a Hugging Face repository in the local cache, or download it there.

    Args:
        repository: "owner/name", with "@revision" if it is not the main branch.
        candidates: file names, of which the first existing one is used.
        what: name of the model, for messages.

    Raises:
        WeightsUnavailableError: neither cached nor available for download.
    """
    import huggingface_hub as hub
    from huggingface_hub import constants, errors, utils

    name, _, revision = repository.partition("@")
    where = f"{constants.ENDPOINT}/{name}"
    cache = f"the Hugging Face cache ({constants.HF_HUB_CACHE}; HF_HOME sets its place)"
    try:
        for candidate in candidates:
            cached = hub.try_to_load_from_cache(name, candidate, revision=revision or None)
            if isinstance(cached, str):
                return Path(cached)
        session = utils.get_session()  # type: ignore[attr-defined]
        _within(REACH_SECONDS, lambda: session.head(constants.ENDPOINT, timeout=REACH_SECONDS))
        for candidate in candidates:
            try:
                return Path(hub.hf_hub_download(name, candidate, revision=revision or None))
            except errors.LocalEntryNotFoundError:  # a failed request, not a missing file, though its subclass
                raise
            except errors.EntryNotFoundError:
                continue
    except Exception as error:  # requests', httpx's and huggingface_hub's errors share no base class
        raise _unavailable(what, where, error, cache) from error
    raise _unavailable(what, where, FileNotFoundError(f"none of {', '.join(candidates)} is there"), cache)


def url_file(url: str, *, what: str) -> Path:
    """Find a file from a URL in torch.hub's cache, or download it there.

    Raises:
        WeightsUnavailableError: neither cached nor available for download.
    """
    import torch.hub

    folder = Path(torch.hub.get_dir()) / "checkpoints"
    file = folder / Path(urlparse(url).path).name
    if file.exists():
        return file
    digest = torch.hub.HASH_REGEX.search(file.name)
    try:
        _within(REACH_SECONDS, lambda: _head(url))
        folder.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(file), digest.group(1) if digest else None)
    except Exception as error:  # OSError, http.client's errors, RuntimeError for a wrong checksum
        cache = f"torch.hub's cache ({folder}; TORCH_HOME sets its place)"
        raise _unavailable(what, url, error, cache) from error
    return file


def _head(url: str) -> None:
    from urllib.request import Request, urlopen

    try:
        urlopen(Request(url, method="HEAD"), timeout=REACH_SECONDS).close()
    except HTTPError as error:
        error.close()  # the server answers; errors about the file are raised when it is fetched


def _within(seconds: float, call: Callable[[], object]) -> None:
    """Run ``call``, but wait at most ``seconds``, as socket timeouts are per address and do not cover DNS."""
    failures: list[BaseException] = []

    def target() -> None:
        try:
            call()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"no answer within {seconds:g} seconds")
    if failures:
        raise failures[0]


def _unavailable(what: str, where: str, error: Exception, cache: str) -> WeightsUnavailableError:
    return WeightsUnavailableError(
        f"the pretrained weights of {what} are not in {cache} and could not be downloaded from {where}: "
        f"{first_line(error)}. "
        "Either pass weights=PATH (--weights PATH) with a checkpoint of this model, or fill the cache on a machine "
        "with network access and copy it here, or (in Python) pass pretrained=False for random weights"
    )
