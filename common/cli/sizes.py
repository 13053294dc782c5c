"""Numbers for people."""


def size(nbytes: int) -> str:
    """`1536` -> `1.5 KiB`; whole bytes below 1 KiB."""
    value = float(nbytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{nbytes} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
