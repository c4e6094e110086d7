"""Which Debian mirror the host itself uses."""

from collections.abc import Iterator
from pathlib import Path

APT = Path("/etc/apt")


def host_mirror(apt: Path = APT) -> str | None:
    """The host's configured Debian mirror; None lets mmdebstrap take its default."""
    for uri in _configured_uris(apt):
        # Not the security archive, and not other vendors' repositories.
        if uri.rstrip("/").endswith("/debian") and uri.startswith(("http://", "https://")):
            return uri
    return None


def _configured_uris(apt: Path) -> Iterator[str]:
    folder = apt / "sources.list.d"
    for path in sorted(folder.glob("*.sources")):
        yield from _deb822_uris(path.read_text(errors="replace"))
    for path in [apt / "sources.list", *sorted(folder.glob("*.list"))]:
        if path.is_file():
            yield from _one_line_uris(path.read_text(errors="replace"))


def _deb822_uris(text: str) -> Iterator[str]:
    for stanza in text.split("\n\n"):
        fields = dict(
            line.split(":", 1)
            for line in stanza.splitlines()
            if ":" in line and not line.startswith(("#", " ", "\t"))
        )
        enabled = fields.get("Enabled", "yes").strip().lower() not in ("no", "false")
        if enabled and "deb" in fields.get("Types", "").split():
            yield from fields.get("URIs", "").split()


def _one_line_uris(text: str) -> Iterator[str]:
    for line in text.splitlines():
        words = line.partition("#")[0].split()
        if not words or words[0] != "deb":
            continue
        if len(words) > 1 and words[1].startswith("["):
            # Options may hold spaces: they end with the first closing bracket.
            end = next((i for i, word in enumerate(words) if word.endswith("]")), len(words))
            words = ["deb", *words[end + 1 :]]
        if len(words) > 1:
            yield words[1]
