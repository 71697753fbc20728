"""Debian packages unpacked into a folder: neither the system's packages nor apt's own state are touched.

An unpacked program runs through the loader and the libraries that were unpacked with it, so that a package of another
Debian release runs too.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
from pathlib import Path

from tests.servers import Unavailable

log = logging.getLogger("tests.servers")

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


class NoPackage(Unavailable):
    """The mirror was reached and does not have the package, or what it has does not run here."""


def codename() -> str:
    """The release of this machine, such as ``bookworm``."""
    if not KEYRING.exists() or shutil.which("apt-get") is None:
        raise Unavailable(f"this is no Debian with apt-get and {KEYRING}: give the DSN of a server instead")
    release = dict(
        line.split("=", 1) for line in Path("/etc/os-release").read_text(encoding="utf-8").splitlines() if "=" in line
    )
    return release["VERSION_CODENAME"].strip('"')


def download(package: str, *, suite: str, cache: Path) -> Path:
    """Fetch ``package`` and all it depends on, once; return the folder of the .deb files.

    Raises NoPackage when the suite lacks it and Unavailable when the mirror cannot be reached.
    """
    archives, complete = cache / "archives", cache / "complete"
    if complete.exists() and complete.read_text(encoding="utf-8") == f"{suite}/{package}":
        return archives
    log.info("downloading %s of Debian %s into %s", package, suite, cache)
    shutil.rmtree(cache, ignore_errors=True)
    for folder in (archives / "partial", cache / "lists" / "partial"):
        folder.mkdir(parents=True)
    (cache / "status").touch()  # nothing counts as installed: every library comes along
    (cache / "sources.list").write_text(f"deb [signed-by={KEYRING}] {_mirror()} {suite} main\n", encoding="utf-8")
    (cache / "apt.conf").write_text(_SETTINGS.format(cache=cache), encoding="utf-8")
    updated = _apt(cache, "-o", "APT::Update::Error-Mode=any", "update")
    if updated.returncode != 0:
        raise Unavailable(f"apt-get update of Debian {suite} failed: {_last(updated)}")
    if _apt(cache, "install", "--simulate", package).returncode != 0:
        raise NoPackage(f"Debian {suite} has no installable {package}")
    fetched = _apt(cache, "install", "--yes", "--download-only", package)
    if fetched.returncode != 0:
        raise Unavailable(f"apt-get could not fetch {package} of Debian {suite}: {_last(fetched)}")
    shutil.rmtree(cache / "lists")
    complete.write_text(f"{suite}/{package}", encoding="utf-8")
    return archives


def unpack(archives: Path, *, without: tuple[str, ...] = ()) -> Path:
    """Unpack what was downloaded, once, for every server that runs it; return the folder, beside the archives.

    ``without`` names packages that are left out.
    """
    root, begun = archives.with_name("root"), archives.with_name("root.new")
    if root.exists():
        return root
    shutil.rmtree(begun, ignore_errors=True)  # what an interrupted one left
    begun.mkdir()
    for archive in sorted(archives.glob("*.deb")):
        if archive.name.partition("_")[0] not in without:
            subprocess.run(["dpkg", "-x", archive, begun], check=True, capture_output=True)
    return begun.rename(root)


def program(root: Path, path: str, *libraries: str) -> list[str]:
    """The command that runs ``root/path`` with the loader and the libraries of ``root``.

    ``libraries`` are further folders of ``root`` to look in.
    """
    folders = [folder for base in ("lib", "usr/lib") for folder in sorted((root / base).glob("*-linux-gnu*"))]
    loaders = [loader for folder in folders for loader in sorted(folder.glob("ld-linux*.so.*"))]
    if not loaders or not (root / path).exists():
        raise NoPackage(f"the packages in {root} hold no loader or no {path}: their layout has changed")
    search = ":".join(str(folder) for folder in (*folders, *(root / library for library in libraries)))
    return [str(loaders[0]), "--library-path", search, str(root / path)]


_SETTINGS = """\
Dir::Etc::sourcelist "{cache}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::State::lists "{cache}/lists";
Dir::State::status "{cache}/status";
Dir::Cache "{cache}";
APT::Install-Recommends "false";
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Post-Invoke;
"""


def _mirror() -> str:
    """The mirror of the system's own sources."""
    own = codename()
    listed = subprocess.run(
        [
            *("apt-get", "indextargets", "--format", "$(RELEASE) $(COMPONENT) $(REPO_URI)", "Created-By: Packages"),
            *("-o", "APT::Get::IndexTargets::ReleaseInfo=false"),  # lists that were never updated will do
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    for line in listed.stdout.splitlines():
        release, component, uri = line.split(" ", 2)
        if (release, component) == (own, "main"):
            return uri
    raise Unavailable(f"apt's sources name no mirror of {own} main")


def _apt(cache: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["apt-get", "-c", cache / "apt.conf", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"},
    )


def _last(process: subprocess.CompletedProcess[str]) -> str:
    return " | ".join(process.stderr.strip().splitlines()[-3:])
