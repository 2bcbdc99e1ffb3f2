"""Machines of workers."""

from isengard.domain.memory import Kind, Machine

GIB = 2**30


def gpu(gib: int, *, name: str = "GPU") -> Machine:
    """One with just so many GiB for jobs."""
    return _machine(gib, kind=Kind.MPS, name=name)


def processor(gib: int = 8) -> Machine:
    """One without a GPU."""
    return _machine(gib, kind=Kind.CPU, name="processor")


def _machine(gib: int, *, kind: Kind, name: str) -> Machine:
    size = gib * GIB + 10**9  # which the system keeps for itself
    memory = dict.fromkeys(("total_bytes", "free_bytes"), size)
    system = dict.fromkeys(("system_total_bytes", "system_free_bytes"), 64 * GIB)
    return Machine(kind=kind, name=name, **memory, **system)
