"""The only importers of torch, diffusers, peft, transformers, torchao and bitsandbytes."""

import sys

# peft imports bitsandbytes wherever it is installed, which takes seconds and which few jobs need. So it stays out of
# sight until `isengard.engines.libraries.bitsandbytes` is asked for it.
sys.modules.setdefault("bitsandbytes", None)  # type: ignore[arg-type]  # None means: do not import
