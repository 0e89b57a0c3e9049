"""`rhostream view`: opens runs, serves their page until it is told to stop, and ends quietly."""

from __future__ import annotations

import os
import sys
import webbrowser
from collections.abc import Callable, Mapping, Sequence

from rhostream import storage
from rhostream.audit.viewer.answers import Viewer
from rhostream.audit.viewer.server import Server
from rhostream.errors import UsageError


def view(
    folders: Sequence[str],
    *,
    port: int = 0,
    roots: Mapping[str, str] | None = None,
    browser: bool = True,
    say: Callable[[str], None] = print,
) -> None:
    """Serve the page of these runs and `say` its address; returns after Ctrl-C.

    Raises UsageError for a folder that is no run and for a port that can't be had, TableError for a run whose newest
    commit is damaged.
    """
    named = storage.listed(folders, "run folders")
    if not named:
        raise UsageError("no run folder was given")
    viewer = Viewer(named, roots)
    with Server(viewer.answers(), port) as server:
        viewer.start()
        try:
            say(server.url)
            if browser and _has_screen():
                webbrowser.open(server.url)
            server.serve_forever(poll_interval=0.1)
        except KeyboardInterrupt:
            pass
        finally:
            viewer.close()


def _has_screen() -> bool:
    """Whether a browser would open a window: one in the terminal would take it away."""
    return sys.platform == "darwin" or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
