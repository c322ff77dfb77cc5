"""Suffixes of image files: those that Pillow reads, and those that cannot be read.

Readers that are registered with Pillow before this import count too, such as pillow-heif for HEIC.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

_NO_PICTURES = frozenset(
    {
        *("EPS", "PDF", "WMF"),  # drawings and documents: other programs would render them
        *("FLI", "MPEG"),  # video
        *("BUFR", "FITS", "GRIB", "HDF5", "IMT", "IPTC", "MCIDAS", "SPIDER"),  # measurements, records
        *("GBR", "PALM", "XVTHUMB"),  # brushes, thumbnails
        "PSD",  # layers; the merged picture is optional
    }
)
_CAMERAS = "3fr arw cr2 cr3 crw dng erf iiq kdc mrw nef nrw orf pef raf rw2 rwl sr2 srf srw x3f"
_OTHERS = {
    "PNG or JPEG": {
        **dict.fromkeys(("heic", "heif", "hif"), "HEIC"),
        **{name: f"RAW ({name.upper()})" for name in _CAMERAS.split()},
        **dict.fromkeys(("svg", "svgz"), "SVG"),
        **dict.fromkeys(("psd", "psb"), "PSD"),
        **dict.fromkeys(("jxr", "wdp", "hdp"), "JPEG XR"),
        **dict.fromkeys(("emf", "wmf"), "WMF"),
        **dict.fromkeys(("djvu", "djv"), "DjVu"),
        **{name: name.upper() for name in ("avif", "bpg", "cdr", "eps", "flif", "jp2", "kra", "webp", "xcf")},
        "ai": "Illustrator",
        "jls": "JPEG-LS",
        "jxl": "JPEG XL",
    },
    "TIFF or .npy": {
        **dict.fromkeys(("dcm", "dicom"), "DICOM"),
        "fits": "FITS",
        "exr": "OpenEXR",
        "hdr": "Radiance HDR",
    },
}


def _find_formats() -> tuple[str, ...]:
    Image.init()  # before it Pillow knows only a few formats
    return tuple(sorted(set(Image.OPEN) - _NO_PICTURES))


def _find_suffixes() -> frozenset[str]:
    readable = {*FORMATS, "MPO"}  # MPO is opened by the reader of JPEG
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in readable)


COMMON_SUFFIXES = ".png, .jpg, .webp, .tif, .avif, .jp2, .bmp, .gif"
"""The most common suffixes, for messages."""
FORMATS = _find_formats()
"""Pillow's names of the readable formats."""
SUFFIXES = _find_suffixes()
"""Suffixes of the readable formats, in lower case with the dot."""
UNREADABLE = {
    f".{suffix}": f"{name} cannot be read here: convert it to {target}"
    for target, names in _OTHERS.items()
    for suffix, name in names.items()
    if f".{suffix}" not in SUFFIXES
}
"""Reasons why image files with other suffixes cannot be read."""


def reason_unread(path: Path) -> str | None:
    """Describes why a file with an image suffix cannot be read; returns None for other files."""
    return UNREADABLE.get(path.suffix.lower())
