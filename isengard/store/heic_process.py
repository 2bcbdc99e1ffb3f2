"""The other end of `isengard.store.heic`: HEIC on stdin, PNG on stdout, or exit code 3 and a reason on stderr."""

import io
import sys

import pi_heif
from PIL import Image

from isengard.errors import ImageRefused
from isengard.store.decoding import DECODE_ERRORS, check_header
from isengard.store.heic import REFUSED


def main() -> int:
    pi_heif.register_heif_opener(thumbnails=False, depth_images=False)
    try:
        image = Image.open(io.BytesIO(sys.stdin.buffer.read()), formats=("HEIF",))
        check_header(image, int(sys.argv[1]))
        image.load()
    except (ImageRefused, *DECODE_ERRORS) as error:
        sys.stderr.write(
            str(error) if isinstance(error, ImageRefused) else f"the HEIC image is damaged ({error})"
        )
        return REFUSED
    image.save(sys.stdout.buffer, "PNG", compress_level=0, icc_profile=image.info.get("icc_profile"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
