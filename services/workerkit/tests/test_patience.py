"""How long a child may take to end when its task is stopped."""

import pytest

from workerkit.running import GRACE_LABEL, NOTHING_TO_SAVE_SECONDS, patience_for
from workerkit.supervision import Patience

USUAL = Patience(stall_seconds=1800.0, grace_seconds=60.0)


def test_work_that_saves_nothing_is_not_waited_for() -> None:
    assert patience_for({}, USUAL) == USUAL
    assert patience_for({}, USUAL, saves=False) == Patience(1800.0, NOTHING_TO_SAVE_SECONDS)
    assert patience_for({}, Patience(1800.0, 1.0), saves=False).grace_seconds == 1.0


@pytest.mark.parametrize("saves", [True, False])
def test_a_label_names_the_grace_of_a_task(saves: bool) -> None:
    assert patience_for({GRACE_LABEL: "9.5"}, USUAL, saves=saves).grace_seconds == 9.5
    for senseless in ("-1", "soon", "nan", "999999"):
        assert patience_for({GRACE_LABEL: senseless}, USUAL, saves=saves) == patience_for({}, USUAL, saves=saves)
