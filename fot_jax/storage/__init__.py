"""Folders of runs and data, on a disk of this machine or in a Google Cloud Storage bucket.

    paths       gs://BUCKET/FOLDER or a local path, with the few operations that differ between them

Only this package imports etils, fsspec, gcsfs and google.cloud, and only once gs:// is asked for.
"""
