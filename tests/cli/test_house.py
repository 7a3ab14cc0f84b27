"""Rules of the house that a linter does not know."""

import re
from pathlib import Path

import tierfed

SOURCE = Path(tierfed.__file__).parent
FILES = {str(p.relative_to(SOURCE)): p.read_text("utf-8") for p in sorted(SOURCE.rglob("*.py"))}


def having(pattern: str) -> set[str]:
    """The files in which a pattern occurs."""
    return {name for name, text in FILES.items() if re.search(pattern, text, re.MULTILINE)}


def test_the_files_are_there() -> None:
    assert {"cli.py", "algorithms/jobfed.py", "data/arrays.py", "models/build.py"} <= FILES.keys()


def test_no_file_is_long() -> None:
    """A method is a page or two; its tiers may have a file of their own."""
    sources = {str(p.relative_to(SOURCE)): p for kind in ("*.py", "*.c", "*.h") for p in SOURCE.rglob(kind)}
    lines = {name: len(p.read_text("utf-8").splitlines()) for name, p in sources.items()}
    limits = {name: 120 if name.startswith("algorithms/") else 400 for name in lines}
    assert {name: n for name, n in lines.items() if n > limits[name]} == {}


def test_pickle_is_read_in_two_places_only() -> None:
    """A restricted one in files of the user, and one on the pipes between a process and its own workers."""
    assert having(r"^\s*(import|from) (pickle|cPickle|dill|cloudpickle|joblib|marshal|shelve)\b") == {
        "data/arrays.py",
        "engine/processes.py",
    }
    assert having(r"pickle\.loads?\(|torch\.load\(|allow_pickle=True") == {"engine/processes.py"}


def test_no_global_random_state() -> None:
    assert having(r"(?<!torch\.Generator\(\)\.)manual_seed\(") <= {"models/build.py", "testing/toy.py"}
    assert having(r"np\.random\.(seed|rand|randn|normal|choice|shuffle|permutation)\(") == set()
    assert having(r"^\s*import random\b|from random import") == set()


def test_the_library_does_not_print() -> None:
    assert having(r"(?<![\w.])print\(") == set()
