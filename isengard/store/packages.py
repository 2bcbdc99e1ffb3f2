"""Which Python packages are asked for, and which are here."""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import Requirement

from isengard.domain.base import Frozen


class Package(Frozen):
    """A package that is asked for."""

    name: str
    wanted: str
    installed: str | None
    fits: bool

    @property
    def complaint(self) -> str:
        """What is wrong with it, for a person."""
        if self.installed is None:
            return f"{self.name} is not installed"
        return f"{self.wanted} is needed, {self.installed} is installed"


def packages(path: Path) -> tuple[Package, ...]:
    """What a requirements file asks for, and what of it is here. Looks at files only, and imports nothing."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return tuple(package(Requirement(line)) for line in lines if line[:1].isalpha())


def package(requirement: Requirement) -> Package:
    """One package, by its name and the versions that are wanted."""
    try:
        installed = version(requirement.name)
    except PackageNotFoundError:
        installed = None
    fits = installed is not None and requirement.specifier.contains(installed, prereleases=True)
    return Package(name=requirement.name, wanted=str(requirement), installed=installed, fits=fits)
