"""Folders of runs and data, on a disk of this machine or in a Google Cloud Storage bucket.

    paths       gs://BUCKET/FOLDER or a local path, with the few operations that differ between them
    explain     errors of a bucket in one line: the missing role, login or bucket
    access      checks before a run that its folder can be written by all who will
    lease       the lock of a run in a bucket
    mirror      files that grow, written here and copied there

Only this package imports etils, fsspec, gcsfs and google.cloud, and only once gs:// is asked for.
"""
