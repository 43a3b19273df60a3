"""Things found by name: one file each in one folder, and adding one edits no other file.

A package that holds such files makes one `Registry`; a file registers what it defines with the
decorator. Names are looked up lazily: the folder's modules are imported at the first look-up.
"""

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

from modelglue.errors import UnknownName

T = TypeVar("T")


class Registry(Generic[T]):
    """The things of one sort that live in the modules of `package`."""

    def __init__(self, sort: str, package: str) -> None:
        self.sort = sort
        self._package = package
        self._entries: dict[str, T] = {}
        self._discovered = False

    def register(self, name: str) -> Callable[[T], T]:
        """Enter what is decorated under `name`; a second entry of that name is a bug."""

        def enter(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"two files register the {self.sort} {name!r}")
            self._entries[name] = entry
            return entry

        return enter

    def __getitem__(self, name: str) -> T:
        """The entry of that name.

        Raises:
            UnknownName: nobody registered it; the message has the nearest spelling.
        """
        self._discover()
        try:
            return self._entries[name]
        except KeyError:
            raise UnknownName(
                f"there is no {self.sort} {name!r}{nearest(name, self._entries)}. "
                f"Known: {', '.join(self)}."
            ) from None

    def __contains__(self, name: object) -> bool:
        self._discover()
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        self._discover()
        return iter(sorted(self._entries))

    def _discover(self) -> None:
        if self._discovered:
            return
        package = importlib.import_module(self._package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self._package}.{module.name}")
        self._discovered = True


def nearest(word: str, known: Iterable[str]) -> str:
    """A clause that names the known spelling nearest to `word`, or nothing.

    >>> nearest("desnity", ["density", "weight"])
    '; did you mean "density"?'
    >>> nearest("banana", ["density"])
    ''
    """
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f'; did you mean "{close[0]}"?' if close else ""
