"""The drawings of a session: one at a time, the newest replaces the others, and cancelled ones leave nothing behind."""

import threading
from collections.abc import Callable, Generator, Iterator
from enum import Enum
from typing import TypeVar

T = TypeVar("T")


class State(Enum):
    """``IDLE -> DRAWING -> FINISHED | CANCELLED | SUPERSEDED | FAILED -> DRAWING -> …``"""

    IDLE = "idle"
    DRAWING = "drawing"
    FINISHED = "finished"
    CANCELLED = "cancelled"
    SUPERSEDED = "superseded"  # cancelled by a newer drawing, which has the page to itself
    FAILED = "failed"


class Runs:
    """Drawings of one kind of one session, each with a ticket.

    Taking a ticket cancels all earlier drawings. A drawing yields nothing before the current one has yielded its final
    state, so the states of two drawings never mix.

    Attributes:
        state: of the drawing that yielded last.
    """

    def __init__(self):
        self._changed = threading.Condition()
        self._newest = self._cancelled = self._begun = 0
        self._active = False
        self.state = State.IDLE

    def take_ticket(self) -> int:
        """Announce a drawing; every earlier one is cancelled."""
        with self._changed:
            self._cancelled = self._newest
            self._newest += 1
            return self._newest

    def cancel(self) -> None:
        """Cancel every drawing that has been announced, whether it has begun or not."""
        with self._changed:
            self._cancelled = self._newest

    def follow(self, ticket: int, steps: Generator[T], last: Callable[[State], T]) -> Iterator[T]:
        """Yield from ``steps`` when it is the ticket's turn, until they end or the drawing is cancelled.

        Args:
            steps: the drawing, not begun yet. Whether it was cancelled is asked after each step.
            last: what to yield instead of the rest when a drawing was cancelled or has failed.

        Raises:
            Exception: whatever the drawing raised, after its final state.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._active)
            is_used = ticket <= self._begun
            self._begun = max(self._begun, ticket)
            self._active, self.state = True, State.DRAWING
        end = State.CANCELLED  # also where nobody listens any more and the generator is closed
        try:
            if not is_used and not self._stop_of(ticket):
                for step in steps:
                    if self._stop_of(ticket):
                        break
                    yield step
                else:
                    end = State.FINISHED
                    return
            end = self._stop_of(ticket) or State.SUPERSEDED
            yield last(end)
        except Exception:
            end = State.FAILED
            yield last(self._stop_of(ticket) or end)
            raise
        finally:
            steps.close()
            with self._changed:
                self._active, self.state = False, end
                self._changed.notify_all()

    def _stop_of(self, ticket: int) -> State | None:
        """Why a drawing must stop, or None."""
        with self._changed:
            if ticket > self._cancelled:
                return None
            return State.CANCELLED if ticket == self._newest else State.SUPERSEDED
