"""A stage for one child: a tree without a root, for tests of a kind of child.

The thread of the test is the supervisor's thread. What a kind asks of that thread with
``remind`` and ``soon`` is done while the test hears news, as in a running tree:

    stage = Stage(thread(target, id="x"))
    assert stage.hear() == ChildStarted(stage.REF, "root/x")
    stage.child.stop()
    assert isinstance(stage.hear(), ChildExited)
    stage.close()
"""

from __future__ import annotations

import threading
from typing import Any, Final

from otpy import ChildSpec, Supervisor
from otpy.abc import Birth, Child
from otpy.core.messages import ChildExited, ChildStarted, Handover
from otpy.runtime import threads
from otpy.runtime.agenda import Agenda, Reminder, TimeIsUp
from otpy.runtime.spares import Spawner
from otpy.runtime.telemetry import Telemetry
from otpy.runtime.tree import Tree
from otpy.runtime.waiting import SystemClock
from tests.helpers import HANG, close

LIMIT: Final = 1
"""The ref of the deadline after which a test waits no longer for news."""


class Stage:
    """A child on its own, and what it delivers.

    Attributes:
        tree: What the child shares with a tree; no supervisor runs in it.
        child: The child, which has been started.
    """

    REF = 7
    """The number that the news of the child carry."""

    def __init__(self, spec: ChildSpec) -> None:
        self.tree = Tree("root", SystemClock(), max_unstopped=100, seed=0)
        self.tree.telemetry = Telemetry("root", self.tree, None)
        self._agenda = Agenda(self.tree.clock, None, lambda: None)
        self._agenda.ident = threading.get_ident()
        birth = Birth(
            ref=self.REF,
            path=f"root/{spec.id}",
            spec=spec,
            incarnation=1,
            last_exit=None,
            handover=Handover(),
            spawn=Spawner(self.tree, "root", self._agenda.mailbox.post).spawn,
            supervisor=Supervisor(self.tree, "root"),
            tree=self.tree,
            shared={},
            remind=self._agenda.remind,
            soon=self._agenda.chores.append,
            returns_in=lambda id: None,  # it is not restarted
            leftovers=list,
        )
        self.child: Child = spec.start(birth)
        self.child.start(self._agenda.deliver)

    def hear(self) -> ChildStarted | ChildExited:
        """Wait for the next news of the child.

        Raises:
            AssertionError: There was none for HANG seconds.
        """
        self._agenda.timers.arm(LIMIT, self.tree.clock.monotonic() + HANG)
        try:
            while (news := self._read()) is None:
                pass
        finally:
            self._agenda.timers.disarm(LIMIT)
        return news

    def is_silent(self) -> bool:
        """Whether the child has delivered nothing that was not heard."""
        self._agenda.do_chores()
        while self._agenda.news or not self._agenda.mailbox.empty():
            if self._read() is not None:
                return False
        return True

    def close(self) -> None:
        """End what the child has shared. The child must have ended."""
        for shared in self.child.birth.shared.values():
            shared.close()
        self._agenda.do_chores()
        close(self.tree)

    def _read(self) -> Any:
        """Read the next item; return None if it was for the supervisor's thread alone."""
        item = self._agenda.next()
        assert not isinstance(item, TimeIsUp), "the child delivers nothing"
        if isinstance(item, Reminder):
            self._agenda.note(item)
        elif isinstance(item, threads.Witness):
            item.speak()
        else:
            return item
        return None
