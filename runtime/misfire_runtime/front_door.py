"""Makes a package's front door: the few names that a user imports, each loaded at its first use.

    if TYPE_CHECKING:                      # what type checkers and editors see
        from misfire_train.attaching import attach
    else:                                  # what happens at run time
        __getattr__, __dir__ = front_door(__name__, {"attach": "misfire_train.attaching"})
    __all__ = ["attach"]

So `import misfire_train` costs nothing, and a vehicle's command never loads what only a server needs.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def front_door(
    package: str, places: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Returns `__getattr__` and `__dir__` of a package that loads its names when they are used.

    Args:
        package: the package's own `__name__`.
        places: public name -> module that defines it. A module of that name itself stands for the module.

    The returned `__getattr__` raises AttributeError for a name that is not public.
    """

    def load(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = importlib.import_module(places[name])
        value = module if places[name] == f"{package}.{name}" else getattr(module, name)
        # Python asks `__getattr__` only for what the package lacks: from now on it is not asked again.
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *places})

    return load, names
