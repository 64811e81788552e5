from __future__ import annotations

import functools
import random as standard_random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hessdist.errors import DataError, WorkloadError
from hessdist.workload.factories import call_factory, find_factory, name_of, one_line

MODULE = """
import functools

class Made:
    def __init__(self, size=1):
        self.size = size

    @staticmethod
    def of_two():
        return Made(2)

class Factory:
    def __call__(self, size=1):
        return Made(size)

def make(size=1):
    return Made(size)

make_three = functools.partial(make, size=3)
factory = Factory()
shortest = lambda: Made()
number = 3

def fails():
    raise ValueError("first\\nsecond")

def imports():
    import module_that_nobody_has
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    (tmp_path / "made_by_a_user.py").write_text(MODULE, encoding="utf-8")
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("name", "arguments", "size"),
    [
        ("make", {"size": 4}, 4),
        ("Made", {"size": 4}, 4),
        ("Made.of_two", {}, 2),
        ("make_three", {}, 3),
        ("make_three", {"size": 4}, 4),
        ("factory", {"size": 4}, 4),
        ("shortest", {}, 1),
    ],
)
def test_anything_that_can_be_called_is_a_factory(
    name: str, arguments: dict[str, Any], size: int
) -> None:
    found = find_factory(f"made_by_a_user:{name}", {}, "model.factory")
    assert call_factory(found, arguments, "model").size == size


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("mak", "'mak' is not known; did you mean 'make'.*or write 'package.module:callable'"),
        ("other", "'other' is not known; built in: make; or write 'package.module:callable'"),
        ("made_by_a_user:", "write 'package.module:callable'"),
        (":make", "write 'package.module:callable'"),
        ("made_by_a_user:mkae", "has no attribute 'mkae'.*did you mean 'make'"),
        ("made_by_a_user:zzz", "has no attribute 'zzz'.*define it in .*made_by_a_user.py"),
        ("made_by_a_user:Made.of_tow", "did you mean 'of_two'"),
        ("made_by_a_user:number", "is not callable, it is an int; name a function"),
        ("made_by_nobody:make", "No module named 'made_by_nobody'.*check the spelling"),
        ("made_by_a_user.part:make", "does not import.*check the spelling"),
        ("made by a user:make", "does not import"),
    ],
)
def test_a_name_that_is_not_found_is_one_line_with_a_remedy(name: str, says: str) -> None:
    with pytest.raises(WorkloadError, match=f"^model.factory: .*{says}") as caught:
        find_factory(name, {"make": lambda: None}, "model.factory")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("raise ValueError('first\\nsecond')", r"\(ValueError: first\); correct the module"),
        ("def f(:\n    pass", r"\(SyntaxError: .*\); correct the module"),
        ("import module_that_nobody_has", "No module named 'module_that_nobody_has'.*correct"),
        ("class E(Exception):\n  def __str__(self): raise RuntimeError\nraise E", r"\(E\)"),
        ("assert False", r"\(AssertionError\)"),
        ("def f(): return f()\nf()", "RecursionError"),
        ("raise StopIteration", "StopIteration"),
        ("def __getattr__(name): raise KeyError(name)", "KeyError: 'make'"),
        ("make = None", "not callable, it is a NoneType"),
    ],
)
def test_a_module_that_fails_is_one_line(here: Path, source: str, says: str) -> None:
    (here / "failing_on_import.py").write_text(source, encoding="utf-8")
    with pytest.raises(WorkloadError, match=f"^data.dataset: .*{says}") as caught:
        find_factory("failing_on_import:make", {}, "data.dataset")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "attribute"), [("random", "Random"), ("queue", "mine")])
def test_a_file_that_is_hidden_by_a_module_of_its_name_is_named(
    here: Path, name: str, attribute: str
) -> None:
    assert standard_random.Random
    (here / f"{name}.py").write_text(f"def {attribute}(): pass", encoding="utf-8")
    with pytest.raises(WorkloadError, match=rf"not {name}\.py of the working directory.*another"):
        find_factory(f"{name}:{attribute}", {}, "model.factory")


def test_a_package_that_is_hidden_by_an_installed_one_is_named(here: Path) -> None:
    (here / "pytest").mkdir()
    (here / "pytest" / "__init__.py").write_text("def fixture(): pass", encoding="utf-8")
    with pytest.raises(WorkloadError, match=r"not pytest/__init__\.py of the working directory"):
        find_factory("pytest:fixture", {}, "model.factory")


def test_a_file_that_hides_a_module_which_it_needs_is_named(here: Path) -> None:
    name = "wave"  # of the standard library, and imported by no one here
    assert name not in sys.modules
    (here / f"{name}.py").write_text(f"from {name} import Wave_read", encoding="utf-8")
    (here / "sounds.py").write_text(f"from {name} import open", encoding="utf-8")
    for module in (name, "sounds"):
        with pytest.raises(WorkloadError, match=r"wave\.py has the name of another module"):
            find_factory(f"{module}:make", {}, "model.factory")
        sys.modules.pop(name, None)


def test_a_module_of_the_users_without_a_namesake_is_taken(here: Path) -> None:
    (here / "words").mkdir()
    (here / "words" / "__init__.py").write_text("def make(): return 3", encoding="utf-8")
    assert find_factory("words:make", {}, "model.factory")() == 3


# -- calling ---------------------------------------------------------------------------------


class Strange:
    """Its signature cannot be read."""

    __signature__ = "no signature"

    def __call__(self, size: int = 1) -> int:
        return size


def test_a_factory_without_a_signature_is_called() -> None:
    assert call_factory(dict, {"a": 1}, "model") == {"a": 1}
    assert call_factory(Strange(), {"size": 3}, "model") == 3


def fails(size: int = 1) -> None:
    raise ValueError(f"{size}\nand more")


def refuses() -> None:
    raise DataError("what", "remedy")


class Silent(Exception):
    def __str__(self) -> str:
        raise RuntimeError


def falls_silent() -> None:
    raise Silent


def needs(size: int, *, depth: int = 3) -> None: ...


@pytest.mark.parametrize(
    ("factory", "arguments", "says"),
    [
        (needs, {}, r"missing a required argument: 'size'\); its signature is \(size"),
        (needs, {"size": 1, "width": 2}, "do not fit needs .*'width'"),
        (fails, {}, r"fails failed \(ValueError: 1\); check model.arguments"),
        (functools.partial(fails, 3), {}, r"fails failed \(ValueError: 3\)"),
        (functools.partial(functools.partial(needs, 1), depth=2), {"size": 1}, "do not fit needs"),
        (falls_silent, {}, r"failed \(Silent\)"),
        (refuses, {}, "^what; remedy$"),
    ],
)
def test_a_factory_that_does_not_do_is_one_line(
    factory: Callable[..., Any], arguments: dict[str, Any], says: str
) -> None:
    with pytest.raises((WorkloadError, DataError), match=says) as caught:
        call_factory(factory, arguments, "model")
    assert "\n" not in str(caught.value)


def test_an_object_that_was_meant_to_be_made_is_told() -> None:
    class Net:
        def __call__(self, inputs: Any) -> Any:
            return inputs

    with pytest.raises(WorkloadError, match="it is a Net itself: name a function that returns it"):
        call_factory(Net(), {}, "model")


def test_long_signatures_and_messages_are_cut() -> None:
    def long(size: int, other: str = "x\n" * 1000) -> None: ...

    with pytest.raises(WorkloadError) as caught:
        call_factory(long, {}, "model")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert len(one_line(ValueError("x" * 1000))) == 200


def test_names_of_callables() -> None:
    assert name_of(needs) == "needs"
    assert name_of(functools.partial(needs)) == "needs"
    assert name_of(Strange()) == "Strange"
    assert name_of(Strange) == "Strange"
    assert one_line(KeyError("a")) == "KeyError: 'a'"
    assert one_line(MemoryError()) == "MemoryError"
