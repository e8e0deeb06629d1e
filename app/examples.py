"""The example that each tab opens with, made by the shipped adapters once for all users."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from .classify import Answer, Classifier
from .depth import DepthMapper
from .depth_maps import DepthMaps
from .drawing import TASK, Drawer, Drawing, Request, own_guidance
from .library import Library
from .sessions import Session

T = TypeVar("T")
CLASSES, IMAGES = 4, 2  # of the example, and of the page's settings at first


class Examples:
    """The examples, each made when it is first asked for, or by `warm`.

    Args:
        folder: for their files, which stay as long as the app runs.
        picture: for the depth. digit: to classify.
    """

    def __init__(
        self,
        folder: Path,
        library: Library,
        drawer: Drawer,
        depth: DepthMapper,
        classifier: Classifier,
        picture: Path,
        digit: Path,
    ):
        self._session = Session(folder, library)
        self._drawer, self._depth, self._classifier = drawer, depth, classifier
        self.picture, self.digit = picture, digit
        self._made: dict[str, object] = {}
        self._is_closed = False
        self._locks = {name: threading.Lock() for name in ("drawing", "depth", "answers")}

    def drawing(self) -> Drawing:
        """Two images each of the first four classes."""
        return self._once("drawing", self._draw)

    def depth(self) -> DepthMaps:
        """The depth of the rendered street."""
        return self._once("depth", lambda: self._depth.estimate(self._session, self.picture))

    def answers(self) -> list[Answer]:
        """The classes of a handwritten digit."""
        return self._once("answers", lambda: self._classifier.classify(self._session, [self.digit])[0])

    def warm(self) -> threading.Thread:
        """Make all of them in a background thread, so that the first user does not wait."""
        thread = threading.Thread(target=self._make_all, name="examples", daemon=True)
        thread.start()
        return thread

    def cancel(self) -> None:
        """Stop making them."""
        self._is_closed = True
        self._session.cancel()

    def _make_all(self) -> None:
        for make in (self.drawing, self.depth, self.answers):
            if not self._is_closed:
                make()

    def _draw(self) -> Drawing:
        classes = self._drawer.classes(self._session)[:CLASSES]
        guidance, from_base = own_guidance(self._session.mix(TASK))
        request = Request(tuple(classes), num_images=IMAGES, guidance=guidance, guidance_base=from_base)
        *_, drawn = self._drawer.draw(self._session, request)
        return drawn

    def _once(self, name: str, make: Callable[[], T]) -> T:
        with self._locks[name]:
            if name not in self._made:
                self._made[name] = make()
            return self._made[name]
