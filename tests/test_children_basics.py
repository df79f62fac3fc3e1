from otpy import supervisor
from otpy.reports import ChildTerminated, Progress
from tests.helpers import Puppet


def test_a_crashed_child_is_replaced(launch, recorder):
    """The replacement is a new incarnation, and the crash is reported with its raising line."""
    puppet = Puppet()
    launch(supervisor("app", children=[puppet.spec("a")]))
    puppet.next().crash(ValueError("boom"))

    assert puppet.next().incarnation == 2
    terminated = recorder.wait_for(ChildTerminated, "app/a")
    assert "raise error" in terminated.reason.traceback
    recorder.wait_for(Progress, "app/a", count=2)
