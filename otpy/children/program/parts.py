"""What is made for one run of a program, and closed at its end."""

from __future__ import annotations

import attrs

from otpy.children.program.lanes import Handout
from otpy.children.program.notify import Mailbox
from otpy.children.program.output import Stream
from otpy.runtime import posix
from otpy.runtime.descendants import Family
from otpy.values import running


@running
class Parts:
    """The parts of a run: a launcher owns them until the watch takes over.

    Attributes:
        family: By which its descendants are known.
        streams: The pipes that it writes to.
        logs: The handouts to log files.
        errors: The one of them that writes the log of its stderr; None: it has none.
        scans: The handouts to searches for a line.
        mailbox: The socket that it sends ``READY=1`` to; None: it has none.
        pidfd: A descriptor that can be read when the leader has ended; None: the system
            has given none.
    """

    family: Family
    streams: list[Stream] = attrs.field(factory=list)
    logs: list[Handout] = attrs.field(factory=list)
    errors: Handout | None = None
    scans: list[Handout] = attrs.field(factory=list)
    mailbox: Mailbox | None = None
    pidfd: int | None = None

    def close(self) -> None:
        """Close them all. Twice is once."""
        for stream in self.streams:
            stream.close()
        if self.pidfd is not None:
            posix.close(self.pidfd)
            self.pidfd = None
        if self.mailbox is not None:
            self.mailbox.close()
            self.mailbox = None
