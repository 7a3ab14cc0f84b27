"""Versions of a node: asked the same twice it repeats itself, asked from before it goes back; later rounds stay."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tierfed.deploy.journal import FIRST, Journal, Lineage, after, as_tree, digest, from_tree
from tierfed.errors import InputError
from tierfed.store import DiskStore, MemoryStore
from tierfed.testing.toy import gap
from tierfed.tree import Tree


@pytest.fixture(params=["memory", "disk"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DiskStore | MemoryStore]:
    made = MemoryStore() if request.param == "memory" else DiskStore(tmp_path / "node")
    yield made
    if isinstance(made, DiskStore):
        made.close()


def number(value: float) -> Tree:
    return {"w": torch.tensor(value)}


def visit(journal: Journal, round_: int, lineage: Lineage, ask: str) -> tuple[str, float]:
    """Adds one to what is kept, unless the same was asked of the same version before: the version and what was said."""
    version = journal.find(lineage, round_)
    journal.begin(round_, version)
    said = journal.said(ask)
    if said is not None:
        return str(said[0]["version"]), float(said[1]["w"])
    kept = float((journal.get("own", 0) or number(0.0))["w"]) + 1
    journal.put("own", 0, number(kept))
    journal.commit_visit(ask, {"version": after(version, ask)}, number(kept))
    return after(version, ask), kept


def kept(journal: Journal) -> float:
    return float((journal.get("own", 0) or number(0.0))["w"])


def test_the_same_question_twice_is_one_visit(store: Any) -> None:
    journal = Journal(store)
    first = visit(journal, 0, Lineage(), digest("a"))
    assert first == (after(FIRST, digest("a")), 1.0)
    assert visit(journal, 0, Lineage(), digest("a")) == first
    assert (kept(journal), len(store.logs if isinstance(store, MemoryStore) else list(store.logs()))) == (1.0, 1)


def test_a_parent_that_began_its_round_again_finds_every_version(store: Any) -> None:
    journal = Journal(store)
    one, _ = visit(journal, 0, Lineage(), digest("a"))
    visit(journal, 0, Lineage(one), digest("b"))
    assert kept(journal) == 2.0
    assert visit(journal, 0, Lineage(), digest("a")) == (one, 1.0)
    assert kept(journal) == 1.0
    assert visit(journal, 0, Lineage(one), digest("c"))[1] == 2.0  # another message than before


def test_what_a_parent_does_not_know_of_is_found_by_its_questions(store: Any) -> None:
    journal = Journal(store)
    one, _ = visit(journal, 0, Lineage(), digest("a"))
    never = digest("never came")
    assert journal.find(Lineage(FIRST, (never, digest("a"))), 0) == one
    assert journal.find(Lineage(FIRST, (never,)), 0) == FIRST
    assert journal.find(Lineage(None), 1) == one
    with pytest.raises(InputError, match="--anew"):
        journal.find(Lineage(digest("of another one")), 0)


def test_a_later_round_makes_the_version_last(store: Any) -> None:
    journal = Journal(store)
    one, _ = visit(journal, 0, Lineage(), digest("a"))
    two, _ = visit(journal, 0, Lineage(one), digest("b"))
    three, said = visit(journal, 1, Lineage(one), digest("c"))  # b was taken back before round 0 was committed
    assert said == 2.0
    with pytest.raises(InputError, match="counts on state"):
        journal.find(Lineage(two), 1)
    assert journal.find(Lineage(one), 1) == one
    with pytest.raises(InputError, match="round 1 has begun"):
        journal.begin(0, three)


def test_a_process_that_was_killed_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "node"
    store = DiskStore(path)
    one, _ = visit(Journal(store), 0, Lineage(), digest("a"))
    journal = Journal(store)
    journal.adopt("run")
    journal.begin(0, one)
    journal.put("own", 0, number(9.0))  # and killed before the commit
    store.close()
    store = DiskStore(path)
    journal = Journal(store)
    assert kept(journal) == 1.0
    assert visit(journal, 0, Lineage(), digest("a")) == (one, 1.0)
    assert visit(journal, 3, Lineage(one), digest("b"))[1] == 2.0
    store.close()


def test_what_was_deleted_is_gone_and_comes_back(store: Any) -> None:
    journal = Journal(store)
    journal.begin(0, FIRST)
    journal.put("rows1", 4, number(1.0))
    one = journal.commit_visit(digest("a"), {}, {})
    journal.begin(0, one)
    journal.put("rows1", 4, None)
    two = journal.commit_visit(digest("b"), {}, {})
    assert journal.ids("rows1") == []
    journal.look(one)
    assert journal.ids("rows1") == [4]
    journal.begin(1, two)
    assert (journal.ids("rows1"), store.get("rows1", 4)) == ([], None)


def test_a_state_is_of_one_run(store: Any) -> None:
    journal = Journal(store)
    journal.adopt("one")
    visit(journal, 0, Lineage(), digest("a"))
    with pytest.raises(InputError, match="run one, its parent is at work on run two"):
        Journal(store).adopt("two")


def test_what_has_begun_anew_stays_so_until_a_round_is_committed(store: Any) -> None:
    """A parent that begins its round again counts on what was lost, also after it has counted on what there is."""
    lost = Lineage(digest("lost"))
    Journal(store, anew=True)  # killed before its first visit
    journal = Journal(store)
    assert journal.untold(journal.find(lost, 3))
    one, _ = visit(journal, 3, lost, digest("tree"))
    visit(journal, 3, Lineage(one), digest("a"))
    journal = Journal(store)
    assert not journal.untold(journal.find(Lineage(one), 3))
    assert journal.untold(journal.find(lost, 3))
    assert visit(journal, 3, lost, digest("tree")) == (one, 1.0)
    assert visit(journal, 3, Lineage(one), digest("b"))[1] == 2.0
    visit(journal, 4, Lineage(one), digest("c"))
    with pytest.raises(InputError, match="counts on state"):
        Journal(store).find(lost, 4)


@pytest.mark.parametrize("lineage", [Lineage(), Lineage(None), Lineage(digest("a"), (digest("b"),) * 3, False)])
def test_lineages_are_records(lineage: Lineage) -> None:
    assert from_tree(as_tree(lineage)) == lineage
    assert from_tree(None) == Lineage()
    assert gap(as_tree(lineage), as_tree(lineage)) == 0.0
