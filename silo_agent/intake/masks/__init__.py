"""Masks of volumes: DICOM segmentations and NIfTI files, laid on the volume's own grid or refused.

`segmentation` and `nifti` say what a file says, `placing` decides whether its voxels are the volume's, `merging` makes
one mask of what there is. Nothing is resampled here: a mask that lies between the voxels is refused.
"""
