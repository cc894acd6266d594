"""What a file is, by its first bytes. Its name does not say, nor its last bytes, which may be an archive inside."""

from __future__ import annotations

HEAD = 512
"""The first bytes that tell what a file is; as many as the header of a tar."""

# A TIFF may also be a raw photograph, whose first image is a thumbnail, and the two letters of BMP and PPM also begin
# texts: of these three kinds, which are not here, the name decides too.
_SURE = (
    (b"\xff\xd8\xff", "jpg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"\x93NUMPY", "npy"),
)
_OTHERS = (
    (b"version https://git-lfs.github.com/", "a Git LFS pointer in place of the file; run `git lfs pull`"),
    (b"version https://hawser.github.com/", "a Git LFS pointer in place of the file; run `git lfs pull`"),
    (b"PK\x03\x04", "a zip archive; extract it"),
    (b"PK\x05\x06", "an empty zip archive"),
    (b"\x1f\x8b", "compressed by gzip; decompress it"),
    (b"BZh", "compressed by bzip2; decompress it"),
    (b"\xfd7zXZ", "compressed by xz; decompress it"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd; decompress it"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; extract it"),
    (b"Rar!\x1a\x07", "a rar archive; extract it"),
    (b"%PDF", "a PDF; save its pages as PNG"),
    (b"%!PS", "PostScript; save it as PNG"),
    (b"8BPS", "a Photoshop file; save it as PNG"),
    (b"\x00\x00\x00\x0cJXL ", "a JPEG XL image; convert it to PNG or JPEG"),
    (b"\xff\x0a", "a JPEG XL image; convert it to PNG or JPEG"),
    (b"\x00\x00\x00\x0cjP  ", "a JPEG 2000 image; convert it to PNG or JPEG"),
    (b"\xffO\xffQ", "a JPEG 2000 image; convert it to PNG or JPEG"),
    (b"II*\0", "a TIFF or a raw photograph; save it as .tif, .png or .jpg"),
    (b"MM\0*", "a TIFF or a raw photograph; save it as .tif, .png or .jpg"),
    (b"\x89HDF", "an HDF5 file; save its images as PNG"),
    (b"\x1aE\xdf\xa3", "a video; save its frames as PNG"),
)
_BRANDS = {b"avif": "an AVIF image", b"avis": "an AVIF image", b"heic": "an HEIC image", b"heix": "an HEIC image"}
_BRANDS |= {b"mif1": "an HEIF image", b"msf1": "an HEIF image", b"hevc": "an HEIC image"}


def image_kind(head: bytes) -> str | None:
    """jpg, png, webp, gif or npy, if the first bytes of a file say so beyond doubt; else None."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    return next((kind for magic, kind in _SURE if head.startswith(magic)), None)


def describe(head: bytes) -> str:
    """What the first bytes of a file that is no readable image are, for people, with the fix where there is one."""
    if head[4:8] == b"ftyp":
        image = _BRANDS.get(head[8:12])
        return f"{image}; convert it to PNG or JPEG" if image else "a video; save its frames as PNG"
    if (what := next((what for magic, what in _OTHERS if head.startswith(magic)), None)) is not None:
        return what
    if (kind := image_kind(head)) is not None:
        return f"a damaged {kind} file; copy it again"
    if head[257:262] == b"ustar":
        return "a tar archive; extract it"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "an HTML page, such as an error of a server; download it again"
    if text.startswith((b"<svg", b"<?xml")):
        return "XML, such as a drawing in SVG; save it as PNG"
    if not head.strip(b"\0"):
        return "zeros, as a download leaves that did not end; download it again"
    if all(byte >= 32 or byte in b"\t\r\n" for byte in head):
        return f"text ({head[:24].decode('utf-8', 'replace')!r})"
    return f"of a kind that is not known (first bytes {head[:8].hex(' ')})"
