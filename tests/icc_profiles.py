"""Small ICC profiles."""

import struct
from itertools import product


def number(value: float) -> bytes:
    """Return a fixed-point number of a profile."""
    return struct.pack(">i", round(value * 65536))


def profile(space: bytes, connection: bytes, parts: dict[bytes, bytes]) -> bytes:
    """Return an ICC profile of a color space with the given tags."""
    parts = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", 2) + b"x" + bytes(79),
        b"cprt": b"text" + bytes(8),
    } | parts
    parts[b"wtpt"] = b"XYZ " + bytes(4) + number(0.9642) + number(1) + number(0.8249)
    offset, table, data = 132 + 12 * len(parts), b"", b""
    for key, part in parts.items():
        part += bytes(-len(part) % 4)
        table += key + struct.pack(">II", offset + len(data), len(part))
        data += part
    header = struct.pack(">I4sI4s4s4s", offset + len(data), b"none", 0x02400000, b"mntr", space, connection)
    header += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + number(0.9642) + number(1)
    return (header + number(0.8249)).ljust(128, b"\0") + struct.pack(">I", len(parts)) + table + data


def curve(gamma: float) -> bytes:
    """Return a tone curve."""
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))


def display_p3() -> bytes:
    """Return the profile of recent phones, with a gamma of 2.2."""
    primaries = {
        b"rXYZ": (0.5151, 0.2412, -0.0011),
        b"gXYZ": (0.2920, 0.6922, 0.0419),
        b"bXYZ": (0.1571, 0.0666, 0.7841),
    }
    colorants = {key: b"XYZ " + bytes(4) + b"".join(map(number, xyz)) for key, xyz in primaries.items()}
    return profile(b"RGB ", b"XYZ ", colorants | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve(2.2)))


def grey(gamma: float) -> bytes:
    """Return the profile of grey values with a gamma."""
    return profile(b"GRAY", b"XYZ ", {b"kTRC": curve(gamma)})


def dark_inks() -> bytes:
    """Return a CMYK profile whose colored inks are grey of L* 50, and whose black ink is black."""
    lightness = [0 if k else 50 if c or m or y else 100 for c, m, y, k in product((0, 1), repeat=4)]
    corners = b"".join(bytes([round(value * 2.55), 128, 128]) for value in lightness)
    identity = number(1) + number(0) * 3 + number(1) + number(0) * 3 + number(1)
    table = (
        b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + identity + bytes(range(256)) * 4 + corners + bytes(range(256)) * 3
    )
    return profile(b"CMYK", b"Lab ", {b"A2B0": table})
