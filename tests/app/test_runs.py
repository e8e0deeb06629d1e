"""Drawings of a session: one at a time, the newest wins, nothing is left of a cancelled one. All by events, no clocks."""

import threading

import pytest

from app.runs import Runs, State

WAIT = 300  # seconds after which something hangs; a loaded machine may take some


class Drawing:
    """Steps that wait: each is drawn when the test lets it."""

    def __init__(self, name, steps=3):
        self.name, self.number = name, steps
        self.started = [threading.Event() for _ in range(steps)]
        self.allowed = [threading.Event() for _ in range(steps)]
        self.is_closed = False

    def steps(self):
        try:
            for number in range(self.number):
                self.started[number].set()
                assert self.allowed[number].wait(WAIT)
                yield f"{self.name} {number}"
        finally:
            self.is_closed = True


class Page:
    """What a session's page was told, by all its drawings."""

    def __init__(self):
        self.runs, self.said, self.threads = Runs(), [], []

    def draw(self, drawing, ticket=None):
        """Begin a drawing in a thread of its own, as gradio does."""
        ticket = ticket or self.runs.take_ticket()

        def go():
            last = lambda state: f"{drawing.name} {state.value}"  # noqa: E731
            self.said.extend(self.runs.follow(ticket, drawing.steps(), last))

        self.threads.append(threading.Thread(target=go))
        self.threads[-1].start()
        return ticket

    def end(self):
        for thread in self.threads:
            thread.join(WAIT)
            assert not thread.is_alive()
        return self.said


def free(*names):
    """Drawings that need not be allowed anything."""
    drawings = [Drawing(name) for name in names]
    for drawing in drawings:
        for event in drawing.allowed:
            event.set()
    return drawings


def test_a_drawing_that_nobody_disturbs_finishes():
    page = Page()
    assert page.runs.state is State.IDLE
    page.draw(*free("a"))
    assert page.end() == ["a 0", "a 1", "a 2"] and page.runs.state is State.FINISHED


def test_cancelled_within_a_step_it_shows_no_more_of_it():
    page, a = Page(), Drawing("a")
    page.draw(a)
    assert a.started[0].wait(WAIT) and page.runs.state is State.DRAWING
    page.runs.cancel()
    a.allowed[0].set()
    assert page.end() == ["a cancelled"] and page.runs.state is State.CANCELLED and a.is_closed
    page.draw(*free("b"))
    assert page.end()[1:] == ["b 0", "b 1", "b 2"]


def test_drawn_right_after_cancel_it_waits_until_the_cancelled_one_has_ended():
    page, a = Page(), Drawing("a")
    page.draw(a)
    assert a.started[0].wait(WAIT)
    page.runs.cancel()
    (b,) = free("b")
    page.draw(b)  # the first one is within its step, and stays there
    assert not b.started[0].is_set()
    a.allowed[0].set()
    assert page.end() == ["a superseded", "b 0", "b 1", "b 2"]


def test_of_several_only_the_newest_is_drawn_in_whatever_order_they_get_their_turn():
    page, a = Page(), Drawing("a")
    page.draw(a)
    assert a.started[0].wait(WAIT)
    tickets = [page.runs.take_ticket() for _ in range(3)]
    drawings = free("b", "c", "d")
    for drawing, ticket in reversed(list(zip(drawings, tickets))):
        page.draw(drawing, ticket)
    a.allowed[0].set()
    said = page.end()
    assert said[0] == "a superseded"
    assert sorted(said) == ["a superseded", "b superseded", "c superseded", "d 0", "d 1", "d 2"]
    assert not drawings[0].started[0].is_set() and not drawings[1].started[0].is_set()


def test_cancelled_before_it_has_begun_it_never_begins():
    page, (a,) = Page(), free("a")
    ticket = page.runs.take_ticket()
    page.runs.cancel()
    page.draw(a, ticket)
    assert page.end() == ["a cancelled"] and not a.started[0].is_set()


def test_a_ticket_is_good_for_one_drawing():
    page, (a, b) = Page(), free("a", "b")
    page.draw(b, page.draw(a))
    assert len(page.end()) == 4 and sum("superseded" in said for said in page.said) == 1


def test_one_that_fails_says_so_and_the_next_is_drawn():
    runs = Runs()

    def steps():
        yield 1
        raise ValueError("no memory")

    said = []
    with pytest.raises(ValueError, match="no memory"):
        said.extend(state for state in _collected(runs.follow(runs.take_ticket(), steps(), str), said))
    assert said == [1, "State.FAILED"] and runs.state is State.FAILED
    assert list(runs.follow(runs.take_ticket(), iter_of(2), str)) == [2]


def _collected(states, said):
    for state in states:
        said.append(state)
    return []


def iter_of(*values):
    yield from values


def test_one_that_nobody_listens_to_any_more_makes_room():
    runs = Runs()
    left = runs.follow(runs.take_ticket(), iter_of(1, 2, 3), str)
    assert next(left) == 1
    left.close()
    assert runs.state is State.CANCELLED
    assert list(runs.follow(runs.take_ticket(), iter_of(4), str)) == [4]
