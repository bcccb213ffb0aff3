# SPDX-License-Identifier: Apache-2.0
"""Finding and downloading a pinned file through pip.

pip already knows the user's indexes, mirrors, certificates and proxies, so nothing about them is
written here. Its command line cannot fetch a source archive without trying to build it; its link
finder can. Those modules are private to pip, so every use of them is in this file and a failure
says what to do by hand.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

from tools.fork.errors import ForkError
from tools.fork.project import Artifact

CHUNK = 1 << 20  # bytes read at a time


def download(
    artifact: Artifact, write: Callable[[bytes], object], size: Callable[[int], object]
) -> None:
    """Stream the file of ``artifact`` into ``write``.

    size: called once with the number of bytes announced, if any is.
    Raises ForkError when pip is missing, or when no configured index lists the file.
    """
    with _pip() as (session, finder):
        link = _find(finder, artifact)
        # Identity encoding: some servers would otherwise compress the archive once more, and the
        # hash would be of that.
        response = session.get(
            link.url_without_fragment, headers={"Accept-Encoding": "identity"}, stream=True
        )
        response.raise_for_status()
        announced = response.headers.get("Content-Length")
        if announced is not None:
            size(int(announced))
        while chunk := response.raw.read(CHUNK):
            write(chunk)


def _find(finder: Any, artifact: Artifact) -> Any:
    for candidate in finder.find_all_candidates(artifact.package):
        if candidate.link.filename == artifact.file:
            return candidate.link
    raise ForkError(
        f"no index that pip is configured with lists {artifact.file} of {artifact.package} for "
        "this "
        "machine and Python version; put the file into the cache folder by hand"
    )


@contextlib.contextmanager
def _pip() -> Iterator[tuple[Any, Any]]:
    """pip's HTTP client and link finder, configured as the user's pip is."""
    try:
        from pip._internal.commands.download import DownloadCommand
    except ImportError:
        raise ForkError(
            "pip is not installed in this Python, and it is what finds the upstream files; run "
            "'python -m ensurepip', or put the files into the cache folder by hand"
        ) from None
    # Indexes that lack a page are normal with several of them; pip would warn about each.
    logging.getLogger("pip").setLevel(logging.ERROR)
    try:
        command = DownloadCommand("download", "Find an upstream file.")
        options, _ = command.parse_args(["--no-deps", "placeholder"])
        with command.main_context():
            session = command._build_session(options)
            yield session, command._build_package_finder(options, session)
    except ForkError:
        raise
    except (AttributeError, TypeError, ImportError) as error:
        raise ForkError(
            "this version of pip does not offer what is needed to find the upstream files "
            f"({error}); "
            "put the files into the cache folder by hand"
        ) from error
    except Exception as error:  # pip and its vendored requests raise many kinds; all mean "no file"
        raise ForkError(f"pip could not fetch the file: {error}") from error
