"""Public names: each is what it says, also after every module of the package was imported."""

import pkgutil
from importlib import import_module

import perceivers as pv


def test_no_module_of_the_package_has_the_name_of_a_public_function() -> None:
    """Importing a submodule binds its name in the package, over any function of that name."""
    modules = {module.name for module in pkgutil.iter_modules(pv.__path__)}
    assert not modules & set(pv.__all__)
    assert {"exporting", "models", "workflows"} <= modules


def test_every_public_name_resolves_to_something_callable() -> None:
    for module in pkgutil.iter_modules(pv.__path__):
        if module.name != "__main__":
            import_module(f"perceivers.{module.name}")
    for name in pv.__all__:
        if name != "__version__":
            assert callable(getattr(pv, name)), name
