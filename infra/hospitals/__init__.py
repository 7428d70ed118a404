"""Made-up hospitals: folders of proper DICOM and a label table, as a real archive would hand them over."""
