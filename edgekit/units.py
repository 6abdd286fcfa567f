"""Numbers that carry their unit: bytes and seconds, and how numbers are written for a person."""


class Bytes(int):
    """A count of bytes. Written with binary prefixes: `1.5 MiB`."""

    def __str__(self) -> str:
        size = float(self)
        for unit in ("B", "KiB", "MiB"):
            if abs(size) < 1024:
                return f"{int(size)} B" if unit == "B" else f"{size:.1f} {unit}"
            size /= 1024
        return f"{size:.2f} GiB"


class Seconds(float):
    """A duration in seconds. Written with the prefix that leaves one to three digits: `12.3 ms`."""

    def __str__(self) -> str:
        if abs(self) >= 2 * 3600:
            hours, rest = divmod(float(self), 3600)
            return f"{int(hours)} h {int(rest // 60)} min"
        if abs(self) >= 60:
            minutes, rest = divmod(float(self), 60)
            return f"{int(minutes)} min {rest:.0f} s"
        for factor, unit in ((1.0, "s"), (1e3, "ms"), (1e6, "us")):
            if abs(self) * factor >= 1:
                return f"{float(self) * factor:.3g} {unit}"
        return f"{float(self) * 1e9:.3g} ns"


def counted(count: int) -> str:
    """`count` in three digits from a million on, whole below: `65,824`, `5.48 million`, `1.1 billion`."""
    for factor, name in ((10**9, "billion"), (10**6, "million")):
        if count >= factor:
            return f"{rounded(count / factor, 3)} {name}"
    return f"{count:,}"


def rounded(value: float, digits: int = 4) -> str:
    """`value` with `digits` significant digits and no exponent unless it is beyond 10^15: `3710`, `0.01341`."""
    return f"{float(f'{value:.{digits}g}'):.15g}"
