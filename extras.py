"""Optional dependencies: a missing extra is reported in one sentence that names it."""

from importlib.util import find_spec


class MissingExtraError(ImportError):
    """A module that belongs to an extra of this package is not installed."""


def require_extra(extra: str, *modules: str) -> None:
    """Check that the modules of an extra are installed, without importing them.

    Args:
        extra (`str`): Name of the extra, as in `pip install ".[extra]"`.
        modules (`str`): Top-level modules that the caller imports from it.

    Raises:
        MissingExtraError: One of the modules is not installed.
    """
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise MissingExtraError(
            f"this needs the extra `{extra}` ({', '.join(missing)} cannot be found): run "
            f'`pip install -e ".[{extra}]"` in a checkout of the repository, or see Install in the README'
        )
