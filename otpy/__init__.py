"""otpy: Erlang/OTP's supervision trees for programs made of threads.

Reports are in ``otpy.reports``, the account of all threads in ``otpy.registry``, and
the ports for new kinds of children, clocks and handlers in ``otpy.abc``.

The names are those of ``otpy.api``. That is loaded when the first one is asked for, so
that ``otpy --help`` and the guard, which need none of them, do not wait for the whole
library. A module is loaded without the others.
"""

import importlib as _importlib
import typing as _typing

if _typing.TYPE_CHECKING:
    from otpy.api import *  # noqa: F403
    from otpy.api import __all__ as __all__

    __version__: str
else:

    def __getattr__(name: str) -> object:
        """Load a module, or find a name; from then on it is here (PEP 562)."""
        if name == "__version__":
            return _importlib.import_module("importlib.metadata").version("otpy")
        try:
            return _importlib.import_module(f"{__name__}.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"{__name__}.{name}":
                raise
        api = _importlib.import_module("otpy.api")
        if name not in (*api.__all__, "__all__"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = globals()[name] = getattr(api, name)
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *__getattr__("__all__")})
