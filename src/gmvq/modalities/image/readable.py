"""Suffixes of image files: of those that Pillow reads, and of those that cannot be read here.

Readers that are registered with Pillow before this is imported count too, as those of pillow-heif for HEIC.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

_NO_PICTURES = frozenset(
    {
        *("EPS", "PDF", "WMF"),  # drawings and documents: other programs would render them
        *("FLI", "MPEG"),  # films
        *("BUFR", "FITS", "GRIB", "HDF5", "IMT", "IPTC", "MCIDAS", "SPIDER"),  # measurements, records
        *("GBR", "PALM", "XVTHUMB"),  # brushes, thumbnails
        "PSD",  # layers; editors add the whole picture only on request
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
    Image.init()  # otherwise Pillow knows a few formats only, until it meets another
    return tuple(sorted(set(Image.OPEN) - _NO_PICTURES))


def _find_suffixes() -> frozenset[str]:
    readable = {*FORMATS, "MPO"}  # which the reader of JPEG opens
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in readable)


COMMON_SUFFIXES = ".png, .jpg, .webp, .tif, .avif, .jp2, .bmp, .gif"
"""Some of them, for messages."""
FORMATS = _find_formats()
"""Pillow's names of the formats that are read."""
SUFFIXES = _find_suffixes()
"""Their suffixes, in lower case with the dot."""
UNREADABLE = {
    f".{suffix}": f"{name} cannot be read here: convert it to {target}"
    for target, names in _OTHERS.items()
    for suffix, name in names.items()
    if f".{suffix}" not in SUFFIXES
}
"""Why files of other suffixes, which are images too, are not read."""


def reason_unread(path: Path) -> str | None:
    """Says why a file that is an image by its suffix cannot be read; None for all others."""
    return UNREADABLE.get(path.suffix.lower())
