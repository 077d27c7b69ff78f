"""Every fusion adapter there is: built in, installed by another package, or named by the user.

A name is looked up in this order:

1. :data:`BUILT_IN`; a name of it always means the built-in adapter,
2. what :func:`register_adapter` or :func:`use_adapter` registered in this process,
3. entry points of the group :data:`ENTRY_POINT_GROUP` of installed packages.

Looking a name up never imports a module that the name itself points to. A checkpoint from someone else can therefore ask
for a built-in adapter or for one of an installed package, and for nothing else: ``package.module:Class`` is imported by
:func:`use_adapter` alone, which is called with what the user wrote (command line, YAML file, Python), never with what a
checkpoint says.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points, packages_distributions, version
from typing import TYPE_CHECKING, Any, TypeVar

from llm_mer.errors import UserError, first_line

if TYPE_CHECKING:
    from llm_mer.adapters.base import AdapterConfig, FusionAdapter

logger = logging.getLogger(__name__)

ENTRY_POINT_GROUP = "llm_mer.adapters"

BUILT_IN: dict[str, str] = {
    "egmf": "llm_mer.adapters.egmf:EGMFAdapter",
    "lsgmer": "llm_mer.adapters.lsgmer:LSGMERAdapter",
    "gia_mic": "llm_mer.adapters.gia_mic:GIAMICAdapter",
    "lpgnet": "llm_mer.adapters.lpgnet:LPGNetAdapter",
    "gated_xlstm": "llm_mer.adapters.gated_xlstm:GatedXLSTMAdapter",
    "gated_projector": "llm_mer.adapters.gated_projector:GatedProjectorAdapter",
}
"""``{name: module:class}``, imported when the adapter is asked for."""

DEFAULT_ADAPTER = "egmf"
"""The one that is used where none is named."""

_registered: dict[str, type[FusionAdapter]] = {}
_packages: dict[str, tuple[str, str]] = {}
"""``{name: (distribution, version)}`` of those that came by an entry point."""

A = TypeVar("A", bound="type[FusionAdapter]")


@dataclass(frozen=True)
class AdapterReference:
    """Where an adapter's class came from, as a checkpoint records it.

    Attributes:
        name: what it was asked for by. path: ``module:class``.
        distribution, version: the installed package it is part of; None for a module that no package installed.
    """

    name: str
    path: str
    distribution: str | None = None
    version: str | None = None

    def __str__(self) -> str:
        package = f" of {self.distribution} {self.version}" if self.distribution else ""
        return f"{self.path}{package}"


def adapter_names() -> list[str]:
    """Every name that :func:`adapter_class` knows: built in first, then installed and registered ones by name."""
    others = {point.name for point in entry_points(group=ENTRY_POINT_GROUP)} | set(_registered)
    return [*BUILT_IN, *sorted(others - set(BUILT_IN))]


def adapter_class(name: str) -> type[FusionAdapter]:
    """The adapter of this name.

    Raises:
        UserError: an unknown name (the choices are listed), or an installed package's adapter that cannot be imported.
    """
    if name in _registered:
        return _registered[name]
    if name in BUILT_IN:
        return _import_class(name, BUILT_IN[name])
    points = [point for point in entry_points(group=ENTRY_POINT_GROUP) if point.name == name]
    if len(points) > 1:
        raise UserError(f"adapter {name!r} is offered by {' and by '.join(map(_describe, points))}; uninstall one of them")
    if points:
        found = _import_class(name, points[0].value, f" of {_describe(points[0])}")
        _registered[name] = found
        if points[0].dist is not None:
            _packages[name] = (points[0].dist.name, points[0].dist.version)
        return found
    if ":" in name:
        raise UserError(
            f"adapter {name!r} is a class of the user's own and was not named by the user here; say --adapter {name}, or "
            "register it with llm_mer.adapters.register_adapter"
        )
    raise UserError(f"unknown adapter {name!r}; choose one of {', '.join(adapter_names())}, or package.module:Class")


def register_adapter(cls: A, name: str | None = None) -> A:
    """Make a class known under ``name`` (default: its own ``name``) in this process; usable as a decorator.

    Raises:
        UserError: not a :class:`~llm_mer.adapters.base.FusionAdapter`, or a name that is another adapter's.
    """
    name = getattr(cls, "name", None) if name is None else name
    if not isinstance(name, str) or not name:
        raise UserError(f"adapter {cls!r} has no name; set the class attribute `name`")
    _check_class(name, cls)
    if name in BUILT_IN or _registered.get(name, cls) is not cls:
        raise UserError(f"adapter name {name!r} is taken by {reference_of(name)}; choose another")
    _registered[name] = cls
    return cls


def use_adapter(name: str) -> str:
    """Make an adapter that the user named known, importing and registering ``package.module:Class``; returns the name.

    To be called with what the user wrote, and never with what a checkpoint or a manifest says. The working directory is
    searched last. Other names are left to :func:`adapter_class`.

    Raises:
        UserError: a module or class that cannot be imported, or that is no adapter.
    """
    if ":" in name and name not in _registered:
        if not {"", os.getcwd()} & set(sys.path):
            sys.path.append(os.getcwd())  # an installed command does not search it
        _registered[name] = _import_class(name, name)
    return name


def build_adapter(name: str, config: AdapterConfig) -> FusionAdapter:
    """Build the named adapter from its own configuration class. Raises ``TypeError`` for another adapter's."""
    cls = adapter_class(name)
    if not isinstance(config, cls.config_class):
        raise TypeError(f"adapter {name} needs a {cls.config_class.__name__}, got {type(config).__name__}")
    return cls(config)


def reference_of(name: str) -> AdapterReference:
    """Where the named adapter's class comes from, to be written into a checkpoint."""
    cls = adapter_class(name)
    path = f"{cls.__module__}:{cls.__qualname__}"
    if name in BUILT_IN:
        return AdapterReference(name, path)
    if name in _packages:
        return AdapterReference(name, path, *_packages[name])
    packages = packages_distributions().get(cls.__module__.partition(".")[0], [])
    return AdapterReference(name, path, packages[0], version(packages[0])) if packages else AdapterReference(name, path)


def check_reference(recorded: AdapterReference) -> None:
    """Check that a checkpoint's adapter is the class it was trained with; another version of its package is a warning.

    Raises:
        UserError: an adapter that is not known here, with what provides it, or another class under its name.
    """
    try:
        here = reference_of(recorded.name)
    except UserError as error:
        if recorded.distribution and ":" not in recorded.name:
            raise UserError(f"its adapter is {recorded}: {first_line(error)}; install {recorded.distribution}") from None
        raise UserError(f"its adapter is {recorded}: {first_line(error)}") from None
    if here.path != recorded.path:
        raise UserError(f"its adapter {recorded.name!r} is {recorded}, but here that name is {here}")
    if here.version != recorded.version:
        logger.warning("the checkpoint's adapter is %s; here it is %s", recorded, here)


def _describe(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist is not None else point.value


def _import_class(name: str, path: str, origin: str = "") -> type[FusionAdapter]:
    """``module:class`` imported, and checked to be an adapter."""
    module, _, attribute = path.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:  # importing runs any code, which may raise anything
        raise UserError(f"adapter {name!r}{origin}: {path} cannot be imported: {first_line(error)}") from error
    return _check_class(name, found)


def _check_class(name: str, found: Any) -> type[FusionAdapter]:
    from llm_mer.adapters.base import FusionAdapter

    if not (isinstance(found, type) and issubclass(found, FusionAdapter)):
        raise UserError(f"adapter {name!r}: {found!r} is no subclass of llm_mer.adapters.base.FusionAdapter")
    return found
