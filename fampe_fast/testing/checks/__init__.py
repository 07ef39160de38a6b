"""The suite's checks, one module per primitive: functions ``check_<what>(ops, device, case)`` and example arguments."""

from importlib import import_module
from pkgutil import iter_modules

for _found in iter_modules(__path__, f"{__name__}."):
    import_module(_found.name)
