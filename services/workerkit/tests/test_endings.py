"""How the end of an attempt reads in the log."""

from workerkit.endings import Failed


def test_a_failure_tells_every_problem_once() -> None:
    assert str(Failed("BAD", "a: is wrong; b: is wrong", ["a: is wrong", "b: is wrong"])) == (
        "failed: a: is wrong; b: is wrong"
    )
    assert (
        str(Failed("BAD", "the data is wrong", ["line 1", "line 2"]))
        == "failed: the data is wrong\n  - line 1\n  - line 2"
    )
