"""``python -m isengard.engines.probe cpu``: says as JSON what torch finds. A process of its own, since it may crash."""

import json
import sys

import torch

from isengard.engines.device import choose_device, total_memory
from isengard.errors import InvalidSpec


def probe(name: str) -> dict[str, object]:
    """The torch build, and the device that ``Settings.device`` means here."""
    build = torch.version.cuda or torch.version.hip or "cpu"
    try:
        device = choose_device(name)
        torch.ones(8, device=device).sum().item()
    except InvalidSpec as error:
        return {"torch": torch.__version__, "build": build, "error": str(error)}
    title = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "torch": torch.__version__,
        "build": build,
        "device": str(device),
        "title": title,
        "memory_bytes": total_memory(device),
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(probe(sys.argv[1])))
