"""The peers, where they are installed: ``pip install 'otpy[bench]'``."""

from __future__ import annotations

import asyncio
import contextlib
import io
import threading
from queue import Queue
from typing import Any

from benchmarks.calls import times_of
from benchmarks.restarts import LIFE, Lives


def latency_of_masterpiece(size: int) -> list[float]:
    lives = Lives(size, LIFE)
    errors: Queue[Any] = Queue()
    with quiet():
        from masterpiece.masterpiecethread import MasterPieceThread
        from masterpiece.supervisor import SupervisorThread

        class Child(MasterPieceThread):
            def update(self) -> bool:
                lives()
                self.stop()
                return True

        supervisor = SupervisorThread(errors)
        supervisor.start()
        child = Child(None)
        child._error_queue = errors
        child.start()
        lives.over.wait()
        supervisor.stop()
        supervisor.join()
    return lives.samples


def latency_of_thread_warden(size: int) -> list[float]:
    from Thread_Warden import Child_Thread, Restart_Policy, Thread_Warden

    lives = Lives(size, LIFE)

    class Child(Child_Thread):
        def run(self) -> None:
            lives()

    warden = Thread_Warden()
    with quiet():
        warden.start()
        policy = Restart_Policy(restart_delay_seconds=0.0, enable_backoff=False)
        warden.register_new_child("child", Child, policy)
        lives.over.wait()
        warden.shutdown()
    return lives.samples


def latency_of_mode(size: int) -> list[float]:
    """Crash and restart a service, which is a coroutine: there is no thread to be made."""
    from mode import Service
    from mode.supervisors import OneForOneSupervisor

    lives = Lives(size, LIFE)

    class Child(Service):
        @Service.task
        async def live(self) -> None:
            lives()

    async def main() -> None:
        supervisor = OneForOneSupervisor(max_restarts=1e9, over=1e9)
        supervisor.add(Child())
        await supervisor.start()
        await asyncio.to_thread(lives.over.wait)
        await supervisor.stop()

    with quiet():
        asyncio.run(main())
    return lives.samples


def check_in_of_thread_warden(size: int) -> list[float]:
    from Thread_Warden import Child_Thread, Thread_Warden

    times: list[float] = []

    class Child(Child_Thread):
        def run(self) -> None:
            times.extend(times_of("it.check_in('child')", warden, size))
            self._stop_event.wait()

    warden = Thread_Warden()
    warden.register_new_child("child", Child)
    while len(times) < size:
        threading.Event().wait(0.01)
    warden.shutdown()
    return times


@contextlib.contextmanager
def quiet() -> Any:
    """Keep what they print, and what Python prints about threads that crash, from the terminal."""
    hook, threading.excepthook = threading.excepthook, lambda _: None
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        threading.excepthook = hook
