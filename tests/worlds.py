"""What several test files need."""

from types import ModuleType


def public_names(module):
    """Name -> function or class, for everything that a module offers."""
    own = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    hidden = ("Any", "import_module")
    return {k: v for k, v in own.items() if k not in hidden and not isinstance(v, ModuleType)}
