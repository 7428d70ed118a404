"""A hospital's archive read over DICOMweb (PS3.18): searched with QIDO-RS, fetched instance by instance with WADO-RS.

`archive.DicomwebArchive` is what a scan uses. It hands out the file as the archive holds it, so that `read_image`
decides on it as on a file of a folder. See docs/adr/0012.
"""
