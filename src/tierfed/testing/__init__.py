"""For authors of algorithms: the laws that every algorithm must pass, and worlds small enough to compute by hand.

    from tierfed.testing import check_algorithm
    check_algorithm(Mine)                       # raises LawError, with every law that does not hold, and where

In a test, one case for each law:

    @pytest.mark.parametrize("law", LAWS)
    def test_law(law):
        check_algorithm(Mine, only=[law])

`quad` is a task whose every step has a closed form: device i has f_i(w) = h_i / 2 |w - a_i|^2.
"""

from tierfed.testing.check import LAWS, Outcome, check_algorithm
from tierfed.testing.laws import LawError
from tierfed.testing.toy import apart, cloud, gap, make_engine, quad, records, run, toy_plan, toy_task

__all__ = [
    "LAWS",
    "LawError",
    "Outcome",
    "apart",
    "check_algorithm",
    "cloud",
    "gap",
    "make_engine",
    "quad",
    "records",
    "run",
    "toy_plan",
    "toy_task",
]
